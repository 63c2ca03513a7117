"""The JSON objects of a recording: what the daemon's events say, put together; pure functions."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from svctl.wire import Message

    Transcript = dict[str, Any]
    Segment = dict[str, Any]

_NO_SPACE_RANGES = (
    (0x2E80, 0x312F),  # radicals, CJK punctuation, kana, bopomofo
    (0x3190, 0x9FFF),  # kanbun to unified ideographs; 0x3130-0x318F is Hangul, which is written with spaces
    (0xF900, 0xFAFF),
    (0xFE30, 0xFE4F),
    (0xFF00, 0xFFEF),  # full-width forms
    (0x20000, 0x3FFFF),
)


def transcript(label: str, segments: Iterable[Message], done: Message) -> Transcript:
    """The JSON object of one recording, from its `segment` events and its `done`."""
    # by channel before `id`: turns that begin together come in any order from the daemon
    parts = sorted(
        map(segment_object, segments), key=lambda part: (part["start"], part.get("channel", 0), part["id"])
    )
    return {
        "file": label,
        "duration": _seconds(done["duration"]),
        "language": main_language(parts),
        "text": join(part["text"] for part in parts),
        "segments": parts,
        "model": done["model"],
        "truncated": done["truncated"],
    }


def failure(label: str, code: str, message: str) -> Transcript:
    """The JSON object of a recording that could not be transcribed."""
    return {"file": label, "error": {"code": code, "message": message}}


def segment_object(event: Message) -> Segment:
    """The JSON object of one segment, from its event; `channel` is there where channels are told apart."""
    channel = {"channel": event["channel"]} if event["channel"] else {}
    return {
        "id": event["index"],
        "start": _seconds(event["start"]),
        "end": _seconds(event["end"]),
        "language": event["language"],
        "language_score": _score(event["language_score"]),
        "emotion": event["emotion"],
        "emotion_score": _score(event["emotion_score"]),
        "event": event["event"],
        "event_score": _score(event["event_score"]),
        "text": event["text"],
        "words": [
            {"word": w["word"], "start": _seconds(w["start"]), "end": _seconds(w["end"])}
            for w in event["words"]
        ],
        "raw": event["raw"],
        **channel,
    }


def words_apart(segments: Iterable[Segment]) -> list[Segment]:
    """Each word as a segment of its own (--words), in the order of time; what has no words stays whole."""
    parts = [
        {**segment, "start": word["start"], "end": word["end"], "text": word["word"], "words": [word]}
        if word
        else segment
        for segment in segments
        for word in segment["words"] or (None,)
    ]
    return sorted(parts, key=lambda part: (part["start"], part.get("channel", 0)))


def _seconds(value: float) -> float:
    # milliseconds are finer than a frame (60 ms); adding 0.0 turns -0.0 into zero
    return round(float(value), 3) + 0.0


def _score(value: float) -> float:
    # four digits: batching moves the fifth
    return round(float(value), 4) + 0.0


def main_language(segments: list[Segment]) -> str:
    """The language with most seconds of speech (of equals the first), `nospeech` where there is none."""
    seconds: dict[str, float] = {}
    for segment in segments:
        if segment["language"] != "nospeech":
            seconds[segment["language"]] = (
                seconds.get(segment["language"], 0.0) + segment["end"] - segment["start"]
            )
    return max(seconds, key=lambda language: seconds[language]) if seconds else "nospeech"


def join(texts: Iterable[str]) -> str:
    """One running text: a space between neighbours, but none beside a script written without spaces."""
    joined = ""
    for text in texts:
        stripped = text.strip()
        if joined and stripped and not (_spaceless(joined[-1]) or _spaceless(stripped[0])):
            joined += " "
        joined += stripped
    return joined


def _spaceless(character: str) -> bool:
    return any(low <= ord(character) <= high for low, high in _NO_SPACE_RANGES)
