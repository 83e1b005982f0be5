"""The scores of a large chat model as teacher, as a verdict.

The tasks of the profile `teacher` are those of ProX's seed data (§3.2, A.1), in our words. A
document gets an educational score and a format score and is kept or dropped by equation 2. An
answer in any other form gives no verdict.
"""

import re

_LABEL = r"[ \t]*(?:[-•>][ \t]*)?{name}(?:[ \t]+(?:score|mark))?[ \t]*[:：]"
_REMARK = r"(?:[ \t]+[-–—(][^\d\n]*)?"  # a digit in it could be another score, as in `3 - 4`
_SCORE = _LABEL + r"[ \t]*([0-5])(?:[ \t]*/[ \t]*5)?" + _REMARK
_SCORES = re.compile(
    rf"(?:\A|\n){_SCORE.format(name='educational')}[.,;|]?\s+"
    rf"{_SCORE.format(name='format')}[.;]?\s*(?:</page>\s*)?\Z",
    re.IGNORECASE,
)
_SCORE_LABEL = re.compile(rf"(?m)^{_LABEL.format(name='(?:educational|format)')}", re.IGNORECASE)
_EMPHASIS = re.compile("[*_`]")
_THOUGHTS = re.compile(r"\s*<think(?:ing)?>(?:(?!</think).)*+</think(?:ing)?>", re.DOTALL)


def read_scores(answer: str) -> tuple[int, int] | None:
    """Return the educational and the format score at the end of an answer.

    None unless the answer ends with both and gives each once: a model that talks on, scores twice
    or quotes the scale has given no scores. Emphasis, bullets, `3/5`, a remark after a score, a
    code fence and reasoning before the answer do not matter. Translated labels are not read.
    """
    thoughts = _THOUGHTS.match(answer)
    plain = _EMPHASIS.sub("", answer[thoughts.end() :] if thoughts else answer)
    match = None if plain.lstrip().startswith("<think") else _SCORES.search(plain)
    if match is None or _SCORE_LABEL.search(plain, 0, match.start()):
        return None
    return int(match.group(1)), int(match.group(2))


def keeps_document(educational: int, format_score: int) -> bool:
    """Apply equation 2 of the paper; the case it leaves open (2 and a format below 4) is a drop."""
    return educational >= 3 or (educational == 2 and format_score >= 4)


def verdict_program(answer: str, truncated: bool) -> str:
    """Return the doc program for an answer, with its scores in a comment.

    A truncated answer, or one without scores, becomes a comment only, which is no verdict.
    """
    scores = None if truncated else read_scores(answer)
    if scores is None:
        return f"# no scores in: {' '.join(answer.split())}"
    call = "keep_doc()" if keeps_document(*scores) else "drop_doc()"
    return f"{call}  # educational {scores[0]}, format {scores[1]}"
