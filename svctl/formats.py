"""What a transcript looks like: the object of a recording in, text, JSON or subtitles out; pure functions.

Imports json only where JSON is written, and never touches a file, a clock or the locale: equal answers give
equal bytes.
"""

from __future__ import annotations

from svctl.objects import segment_object, words_apart
from svctl.options import MAX_NUMBER, TAGS
from svctl.terminal import printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from svctl.objects import Segment, Transcript
    from svctl.wire import Message

    Cue = tuple[float, float, str]


def speaker(segment: Segment) -> str:
    """Who speaks, as far as channels tell it: `1: ` for the first, "" where they are mixed."""
    return f"{segment['channel']}: " if segment.get("channel") else ""


def _labels(segment: Segment) -> list[tuple[str, str]]:
    """The tags worth saying and what they are of, outermost first.

    Unknown emotions and the event `Speech` say nothing.
    """
    found = [("language", segment["language"].upper())]
    if segment["emotion"] not in ("", "EMO_UNKNOWN"):
        found.append(("emotion", segment["emotion"]))
    if segment["event"] not in ("", "Speech", "Event_UNK"):
        found.append(("event", segment["event"]))
    return found


_COLOURS = {"time": "2", "speaker": "1", "language": "2", "emotion": "35", "event": "31"}
"""SGR parameters (ECMA-48): times and languages recede, what was heard beside the words stands out.

Of the eight colours only magenta and red can be read on white and on black alike.
"""


def _painted(kind: str, text: str, *, colour: bool) -> str:
    # Colours are added behind `printable`: what was said cannot bring its own.
    text = printable(text)
    return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if colour and text and kind in _COLOURS else text


def segment_line(segment: Segment, tags: str, *, timestamps: bool, colour: bool = False) -> str:
    """One line of `-f text`, with its line end; empty where there is nothing to show.

    `tags` is any of options.TAGS but `emoji`; `none` shows nothing of an event without speech.
    """
    text = segment["text"].strip()
    labels = [(kind, f"[{label}]") for kind, label in _labels(segment)]
    if tags == "raw":
        parts = [("text", segment["raw"])]
    elif tags == "bracket":
        parts = [*labels, ("text", " " + text if text else "")]
    elif tags == "enclosed":
        labels = [label for label in labels if label[1] != "[NEUTRAL]"]
        parts = [*labels, ("text", text), *reversed(labels)]
    else:
        parts = [("text", text)]
    line = "".join(_painted(kind, part, colour=colour) for kind, part in parts)
    if not line:
        return ""
    span = f"[{segment['start']:.2f}-{segment['end']:.2f}]" if timestamps else ""
    who = _painted("speaker", speaker(segment), colour=colour)
    return (_painted("time", span, colour=colour) + " " if span else "") + who + line + "\n"


def text_lines(whole: Transcript, tags: str, *, timestamps: bool) -> str:
    """`-f text` of a whole recording: a line per segment, or a single line for `emoji`."""
    if tags == "emoji":
        from svctl.emoji import emoji  # noqa: PLC0415 - its tables are for this alone

        return printable(emoji(funasr_text(whole))) + "\n"
    return "".join(segment_line(segment, tags, timestamps=timestamps) for segment in whole["segments"])


def raw_lines(whole: Transcript) -> str:
    """`-f raw`: each segment's FunASR `text` on its own line, unaltered."""
    return "".join(segment["raw"] + "\n" for segment in whole["segments"])


def plain_line(whole: Transcript) -> str:
    """`-f plain`: the running text alone; where channels are told apart, a line for each turn."""
    turns = [part for part in whole["segments"] if part.get("channel") and part["text"].strip()]
    if turns:
        return "".join(printable(speaker(turn) + turn["text"].strip()) + "\n" for turn in turns)
    return printable(whole["text"]) + "\n"


def json_text(whole: Any, *, indent: int | None = None) -> str:
    """JSON in UTF-8 characters, without a line end."""
    import json  # noqa: PLC0415 - 9 ms that only JSON output has to pay

    return json.dumps(whole, ensure_ascii=False, indent=indent, allow_nan=False)


def srt(whole: Transcript, width: int | None = None, count: int | None = None) -> str:
    """SubRip: numbered cues, a comma before the milliseconds; `width` and `count` as in subtitles.cues."""
    return "".join(_srt_cue(number, cue) for number, cue in enumerate(_cues(whole, width, count), 1))


def _srt_cue(number: int, cue: Cue) -> str:
    start, end, text = cue
    return f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{text}\n\n"


_VTT_HEAD = "WEBVTT\n\n"


def vtt(whole: Transcript, width: int | None = None, count: int | None = None) -> str:
    """WebVTT: its header line, then cues with a point before the milliseconds, and markup escaped."""
    return _VTT_HEAD + "".join(map(_vtt_cue, _cues(whole, width, count)))


def _vtt_cue(cue: Cue) -> str:
    start, end, text = cue
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return f"{_clock(start, '.')} --> {_clock(end, '.')}\n{text}\n\n"


def _cues(whole: Transcript, width: int | None, count: int | None) -> list[Cue]:
    """Seconds and text of each subtitle: a segment with text each, or the lines that `width` makes of it.

    In the order of their beginnings: turns of two channels overlap, and each may become several.
    """
    return sorted(_of_segments(whole["segments"], width, count), key=lambda cue: cue[0])


def _of_segments(segments: Iterable[Segment], width: int | None, count: int | None) -> Iterator[Cue]:
    for segment in segments:
        if not segment["text"].strip():
            continue
        if width is None:
            yield segment["start"], segment["end"], speaker(segment) + _shown(segment["text"])
            continue
        from svctl import subtitles  # noqa: PLC0415 - brings unicodedata's tables

        for cue in subtitles.cues(segment, width, count, speaker(segment)):
            yield cue.start, cue.end, "\n".join(map(_shown, cue.lines))


def tsv(whole: Transcript) -> str:
    """start, end, text of what has text; integer milliseconds, as openai-whisper writes it.

    Where channels are told apart, their numbers are a column before the text.
    """
    told_apart = any(s.get("channel") for s in whole["segments"])
    return _tsv_head(told_apart=told_apart) + "".join(
        _tsv_row(s, told_apart=told_apart) for s in whole["segments"] if s["text"].strip()
    )


def _tsv_head(*, told_apart: bool) -> str:
    return "\t".join(("start", "end", "channel", "text") if told_apart else ("start", "end", "text")) + "\n"


def _tsv_row(segment: Segment, *, told_apart: bool) -> str:
    channel = f"{segment.get('channel', 0)}\t" if told_apart else ""
    times = f"{round(segment['start'] * 1000)}\t{round(segment['end'] * 1000)}\t"
    return f"{times}{channel}{_shown(segment['text'])}\n"


def _shown(text: str) -> str:
    text = text.strip().replace("\t", " ")
    while "-->" in text:  # a longer arrow loses a dash each time
        text = text.replace("-->", "->")
    return printable(text)


def _clock(seconds: float, mark: str) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}{mark}{milliseconds % 1000:03d}"


def verbose_json(whole: Transcript) -> str:
    """What whisper's `verbose_json` has of it, and each segment's tags; words in one list, as there."""
    segments = [
        {
            name: part[name]
            for name in ("id", "start", "end", "text", "language", "emotion", "event", "channel")
            if name in part
        }
        for part in whole["segments"]
    ]
    found = {
        "task": "transcribe",
        "language": whole["language"],
        "duration": whole["duration"],
        "text": whole["text"],
        "segments": segments,
        "words": [word for part in whole["segments"] for word in part["words"]],
    }
    return json_text(found, indent=2) + "\n"


class Style:
    """How a transcript is written, where its format leaves a choice."""

    __slots__ = ("max_line_count", "max_line_width", "tags", "timestamps", "words")

    def __init__(
        self,
        tags: str = "bracket",
        *,
        timestamps: bool = False,
        words: bool = False,
        max_line_width: int | None = None,
        max_line_count: int | None = None,
    ) -> None:
        """`tags` and `timestamps` are of `text`, lines of subtitles; `words` go alone, without tags.

        Raises ValueError for what is none of options.TAGS, and for lines that cannot be.
        """
        if tags not in TAGS:
            raise ValueError(f"tags are {', '.join(TAGS)}, not {tags!r}")
        for name, value in (("max_line_width", max_line_width), ("max_line_count", max_line_count)):
            if value is not None and (type(value) is not int or not 0 < value <= MAX_NUMBER):
                raise ValueError(f"{name} is a whole number from 1 to {MAX_NUMBER}, not {value!r}")
        if max_line_count is not None and max_line_width is None:
            raise ValueError("max_line_count counts the lines that max_line_width makes: give both")
        self.tags = "none" if words else tags
        self.timestamps = words or timestamps
        self.words = words
        self.max_line_width = max_line_width
        self.max_line_count = max_line_count


def rendered(form: str, whole: Transcript, style: Style) -> str:
    """The file that a format is, of one recording."""
    if style.words and form in _BY_WORD:
        whole = whole | {"segments": words_apart(whole["segments"])}
    if form == "text":
        return text_lines(whole, style.tags, timestamps=style.timestamps)
    if form in ("srt", "vtt"):
        subtitles = srt if form == "srt" else vtt
        return subtitles(whole, style.max_line_width, style.max_line_count)
    return _PLAIN[form](whole)


_PLAIN: dict[str, Callable[[Transcript], str]] = {
    "raw": raw_lines,
    "plain": plain_line,
    "json": lambda whole: json_text(whole, indent=2) + "\n",
    "jsonl": lambda whole: json_text(whole) + "\n",
    "verbose_json": verbose_json,
    "tsv": tsv,
}
"""The formats without a choice."""
_BY_WORD = ("text", "srt", "vtt", "tsv")
"""The formats that --words changes."""
FORMS = ("text", "srt", "vtt", *_PLAIN)
"""All that `rendered` knows."""


GROWING = ("text", "raw", "srt", "vtt", "tsv")
"""The formats that are written segment by segment; text not where --tags emoji makes one line of it."""


class Growing:
    """One recording in a format of GROWING, in parts: together they are what `rendered` gives of the whole.

    For segments in the order of time: turns of several channels, which come nearly so, need `rendered`.
    """

    def __init__(self, form: str, style: Style, *, colour: bool = False) -> None:
        """`colour` is for `text` on a terminal."""
        self._form = form
        self._style = style
        self._colour = colour
        self._headed = False
        self._cues = 0

    def add(self, event: Message) -> str:
        """What a `segment` event adds, "" where it has nothing to show."""
        segment = segment_object(event)
        apart = self._style.words and self._form in _BY_WORD
        shown = "".join(self._lines(words_apart([segment]) if apart else [segment]))
        return self._head(segment) + shown if shown else ""

    def end(self) -> str:
        """What the end adds: the header of a recording in which nothing was said."""
        return self._head({})

    def _head(self, segment: Segment) -> str:
        if self._headed:
            return ""
        self._headed = True
        if self._form == "tsv":
            return _tsv_head(told_apart=bool(segment.get("channel")))
        return _VTT_HEAD if self._form == "vtt" else ""

    def _lines(self, segments: list[Segment]) -> Iterator[str]:
        style = self._style
        if self._form == "text":
            for segment in segments:
                yield segment_line(segment, style.tags, timestamps=style.timestamps, colour=self._colour)
        elif self._form == "raw":
            yield from (segment["raw"] + "\n" for segment in segments)
        elif self._form == "tsv":
            for segment in segments:
                if segment["text"].strip():
                    yield _tsv_row(segment, told_apart=bool(segment.get("channel")))
        else:
            for cue in _of_segments(segments, style.max_line_width, style.max_line_count):
                self._cues += 1
                yield _vtt_cue(cue) if self._form == "vtt" else _srt_cue(self._cues, cue)


def funasr_text(whole: Transcript) -> str:
    """The `text` that FunASR's AutoModel would return: the raw texts with a space between them."""
    return " ".join(segment["raw"] for segment in whole["segments"])
