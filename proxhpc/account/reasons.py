"""Readable text for reasons and flags; JSON and ledgers hold the codes."""

_WORDS = {
    # why a document was dropped or quarantined by its programs
    "doc_program": "verdict of the doc stage",
    "removed_share": "more of the text removed than the policy allows",
    "emptied": "nothing left",
    "rewrite": "the model wrote a text in place of a program",
    "short": "too few words left",
    "error_budget": "too many invalid statements in its program",
    "reference_removed_share": "too much removed for the public ProX code",
    "reference_short": "too few words left for the public ProX code",
    "reference_zero_division": "the public ProX code divides by zero",
    "reference_memory": "the public ProX code would need too much memory",
    "reference_split_line": "a line was split, which the public ProX code never does",
    "reference_time": "the public ProX code would need too much time",
    "not_asked": "kept under the new policy, but never edited, since the old one dropped it",
    # why the merge left a document out
    "benchmark": "runs of words of a benchmark",
    "repeated_lines": "lines that the corpus has several times",
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
    "zstd_window_too_large": "compressed with too large a zstd window",
    "unreadable_row": "unreadable parquet row",
    "request_refused": "engine refused the request",
    "not_a_number": "the model's output is not a number",
    "poison": "killed a worker or engine twice",
    "internal_error": "internal error",
    # why a statement was not executed
    "no_program": "empty answer",
    "not_a_call": "not a function call",
    "unknown_call": "unknown function",
    "wrong_level": "function of the other stage",
    "wrong_dialect": "function of another dialect",
    "bad_arguments": "invalid arguments",
    "trailing_text": "text after the statement",
    "unterminated": "unfinished statement",
    "unclear_verdict": "no clear verdict",
    "truncated_call": "call truncated by the token limit",
    "reversed_range": "first line after last line",
    "outside_window": "lines outside the window",
    "no_such_line": "no such line in the window",
    "other_window": "lines of another window",
    "blank_source": "empty search string or line",
    "not_found": "string not in the text",
    "ambiguous": "ambiguous string",
    "inside_word": "string inside a word",
    "too_many_matches": "string found too often",
    "too_many_strings": "too many string edits",
    "growth": "text would grow too much",
    "overlap": "overlaps another edit",
    "crosses_removed": "string in removed lines",
    "reference_errors": "error of the public ProX code",
    # what was overlooked to read or execute a program
    "think_block": "reasoning before the answer",
    "string_prefix": "prefix of a string",
    "quotes": "other quotation marks",
    "inner_quote": "quotation marks within a string",
    "quoted_number": "number in quotation marks",
    "invisible": "invisible or unusual blanks between calls",
    "punctuation": "full-width punctuation",
    "end_token": "token of a chat template",
    "tag": "tag around the answer",
    "fence": "code fence",
    "prose_around_fence": "prose around the code fence",
    "comment": "comment of another language",
    "list_marker": "list marker or prompt before a call",
    "label": "label before a call",
    "emphasis": "emphasis or quotes around a call",
    "separator": "separator between calls",
    "trailing_punctuation": "punctuation after a call",
    "trailing_prose": "prose after a call",
    "number": "another form of a number",
    "trailing_comma": "comma after the last argument",
    "none": "None for the empty string",
    "parameter_name": "another name of a parameter",
    "verdict_form": "another form of the verdict",
    "clipped_range": "one line past the end of the window",
    "line_number_echo": "line number before a string",
    "escaped_punctuation": "backslash before punctuation",
    "equivalent_text": "text that differs only invisibly",
    # what was unusual in a document or an answer
    "truncated": "document too long for the doc prompt",
    "line_too_long": "line too long for a window",
    "looped": "answer repeated itself",
    "unusable_answer": "answer from which nothing can be read",
}


_CALLS = {
    "keep_doc": "keep the document",
    "drop_doc": "drop the document",
    **dict.fromkeys(("keep_all", "keep_chunk", "skip_chunk", "untouch_doc"), "keep every line"),
    "remove_lines": "remove lines",
    "remove_all": "remove every line",
    "add_line": "add lines",
    "rewrite": "answer with a new text",
    "normalize": "replace a string",
    "remove_str": "remove a string",
    "replace_str": "replace a string",
}
_FINISHES = {
    "stop": "complete answers",
    "length": "answers truncated at their token limit",
    "loop": "answers stopped because they repeated themselves",
}


def call_text(name: str) -> str:
    """A function of a program in words, with its name; one without words is its name."""
    return f"{_CALLS[name]} ({name})" if name in _CALLS else name


def finish_text(finish: str) -> str:
    """How answers ended, in words."""
    return _FINISHES.get(finish, finish)


def reason_text(code: str) -> str:
    """A reason or flag in words; one without words is returned as it is."""
    return _WORDS.get(code, code)
