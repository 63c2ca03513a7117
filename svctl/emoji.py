"""The emoji rendering of FunASR's rich_transcription_postprocess, habit by habit, for those who rely on it.

Nothing else is built on it: it joins segments without a space and deletes every "The.". Imports nothing.
Source of the rules: funasr/utils/postprocess_utils.py of FunASR 1.4.16.
"""

from __future__ import annotations

# Marks in FunASR's order of counting them and taking them out, since taking one out can complete another.
_COUNTED = (
    *("<|nospeech|><|Event_UNK|>", "<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|nospeech|>"),
    *(
        "<|HAPPY|>",
        "<|SAD|>",
        "<|ANGRY|>",
        "<|NEUTRAL|>",
        "<|BGM|>",
        "<|Speech|>",
        "<|Applause|>",
        "<|Laughter|>",
    ),
    *(
        "<|FEARFUL|>",
        "<|DISGUSTED|>",
        "<|SURPRISED|>",
        "<|Cry|>",
        "<|EMO_UNKNOWN|>",
        "<|Sneeze|>",
        "<|Breath|>",
        "<|Cough|>",
    ),
    *("<|Sing|>", "<|Speech_Noise|>", "<|withitn|>", "<|woitn|>", "<|GBG|>", "<|Event_UNK|>"),
)
_EMOTIONS = {
    "<|HAPPY|>": "😊",
    "<|SAD|>": "😔",
    "<|ANGRY|>": "😡",
    "<|NEUTRAL|>": "",
    "<|FEARFUL|>": "😰",
    "<|DISGUSTED|>": "🤢",
    "<|SURPRISED|>": "😮",
}
_EVENTS = {
    "<|BGM|>": "🎼",
    "<|Applause|>": "👏",
    "<|Laughter|>": "😀",
    "<|Cry|>": "😭",
    "<|Sneeze|>": "🤧",
    "<|Cough|>": "🤧",
}
_EMOTION_SIGNS = "😊😔😡😰🤢😮"
_EVENT_SIGNS = "🎼👏😀😭🤧😷"
_LANGUAGE_MARKS = ("<|zh|>", "<|en|>", "<|yue|>", "<|ja|>", "<|ko|>", "<|nospeech|>")


def emoji(raw: str) -> str:
    """A FunASR `text` as its official demo shows it: events in front, emotions behind, no repeats."""
    raw = raw.replace("<|nospeech|><|Event_UNK|>", "❓")
    for mark in _LANGUAGE_MARKS:
        raw = raw.replace(mark, "<|lang|>")
    first, *others = map(_signed, raw.split("<|lang|>"))
    shown = " " + first
    # FunASR looks for the first part's sign behind the space it has just put in front, and so never finds it
    last_event = ""
    for part in others:
        if part and part[0] == last_event:
            part = part[1:]  # noqa: PLW2901 - the part without its repeated sign is what all below speaks of
        if not part:
            continue
        last_event = part[0] if part[0] in _EVENT_SIGNS else ""
        if part[-1] in _EMOTION_SIGNS and part[-1] == shown[-1]:
            shown = shown[:-1]
        shown += part.strip()
    return shown.replace("The.", " ").strip()


def _signed(part: str) -> str:
    """One stretch of a language with its marks counted, taken out, and shown as signs."""
    counts = {}
    for mark in _COUNTED:
        counts[mark] = part.count(mark)
        part = part.replace(mark, "")
    # the most frequent emotion; NEUTRAL wins a tie, then the earlier in the table
    emotion = max(_EMOTIONS, key=lambda mark: (counts[mark], mark == "<|NEUTRAL|>"))
    for mark, sign in _EVENTS.items():
        if counts[mark]:
            part = sign + part
    part += _EMOTIONS[emotion]
    for sign in _EMOTION_SIGNS + _EVENT_SIGNS:
        part = part.replace(" " + sign, sign).replace(sign + " ", sign)
    return part.strip()
