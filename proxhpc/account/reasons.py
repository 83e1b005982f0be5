"""Readable text for reasons and flags; JSON and ledgers hold the codes."""

_WORDS = {
    # why a document was dropped or quarantined by its programs
    "doc_program": "verdict of the doc program",
    "removed_share": "too much of the text removed",
    "short": "too few words left",
    "error_budget": "too many invalid statements",
    "reference_removed_share": "the reference executor drops it: too much removed",
    "reference_short": "the reference executor drops it: too few words left",
    "reference_zero_division": "the reference executor divides by zero",
    "reference_memory": "the reference executor would need too much memory",
    "reference_time": "the reference executor would need too much time",
    "not_asked": "kept under this policy, but no model wrote chunk programs",
    # why a record was quarantined
    "invalid_json": "not valid JSON",
    "invalid_utf8": "not valid UTF-8",
    "not_an_object": "not a JSON object",
    "missing_text": "no text field",
    "null_text": "text is null",
    "text_not_string": "text is not a string",
    "id_not_scalar": "id is not a string or number",
    "record_too_long": "record too long",
    "too_long": "file too long",
    "truncated_input": "input file truncated",
    "corrupt_input": "input file damaged",
    "zstd_window_too_large": "zstd window too large",
    "unreadable_row": "unreadable parquet row",
    "request_refused": "engine refused the request",
    "poison": "killed a worker or engine twice",
    "internal_error": "internal error",
    # why a statement was not executed
    "not_a_call": "not a function call",
    "unknown_call": "unknown function",
    "wrong_level": "function of the other stage",
    "wrong_dialect": "function of the other dialect",
    "bad_arguments": "invalid arguments",
    "trailing_text": "text after the statement",
    "unterminated": "unfinished statement",
    "unclear_verdict": "no clear verdict",
    "truncated_call": "call truncated by the token limit",
    "reversed_range": "first line after last line",
    "outside_window": "lines outside the window",
    "blank_source": "nothing to search for",
    "not_found": "string not in the text",
    "ambiguous": "ambiguous string",
    "inside_word": "string inside a word",
    "too_many_matches": "string found too often",
    "too_many_strings": "too many string edits",
    "growth": "text would grow too much",
    "overlap": "overlaps another edit",
    "crosses_removed": "string in removed lines",
    "reference_errors": "error of the reference executor",
    # what was unusual in a document or an answer
    "truncated": "document too long for the doc prompt",
    "line_too_long": "line too long for a window",
    "looped": "answer repeated itself",
}


def reason_text(code: str) -> str:
    """A reason or flag in words; one without words is returned as it is."""
    return _WORDS.get(code, code)
