"""Defects of the public executor, and what the default policy does instead.

Destructive defects have the numbers 1 to 13; defects of the parser, of error counts and of
thresholds follow. If one line can show a defect under the reference policy, the test shows it.
"""

import tracemalloc

import pytest

from proxhpc.program.policy import Policy
from proxhpc.program.replay import ModelOutput, ProgramFormat, WindowProgram, replay

BRAIN = "The adult brain is plastic all through life as we now know.\n" * 6 + "Share this page"
LINES = BRAIN.split("\n")


def run(program, text=BRAIN, finish="stop", policy=None):
    windows = [WindowProgram(0, text.count("\n") + 1, ModelOutput(program, finish))]
    return replay(text, None, windows, policy or Policy(), ProgramFormat())


def reference(program, text=BRAIN):
    return run(program, text, policy="reference")


def assert_unchanged(result, text=BRAIN, **rejected):
    assert (result.outcome, result.text) == ("kept", text)
    assert result.rejected == rejected


def test_defect_1_truncated_normalize_deletes_nothing():
    program = 'normalize(source_str="The adv'
    assert reference(program).text.startswith("ult brain")
    assert_unchanged(run(program, finish="length"), truncated_call=1)
    assert_unchanged(run(program), unterminated=1)


def test_defect_2_remove_lines_with_a_truncated_number_is_not_executed():
    program = "remove_lines(start=1, end=19"
    assert reference(program).lines_removed == 1
    assert_unchanged(run(program, finish="length"), truncated_call=1)


def test_defect_3_a_truncated_repetition_loop_keeps_the_valid_edits():
    program = "remove_lines(start=6, end=6)\n" * 40 + "remove_lines(start=7, end"
    assert reference(program).text == BRAIN
    result = run(program, finish="length")
    assert result.text == "\n".join(LINES[:6])
    assert result.rejected == {"truncated_call": 1}


def test_defect_4_equals_sign_in_a_string():
    text = f"{BRAIN}\nGoogle scholar: http://a.com/x?user=ME"
    program = 'normalize(source_str="http://a.com/x?user=ME", target_str="")'
    assert reference(program, text).text.endswith("Google scholar: =ME")
    assert run(program, text).text.endswith("Google scholar: ")


def test_defect_5_parenthesis_in_a_string():
    text = f"{BRAIN}\nfoo (beta) bar"
    assert reference('normalize(source_str="foo (beta)")', text).text.endswith("\n) bar")
    assert run('normalize(source_str="foo (beta)")', text).text.endswith("\n bar")


def test_defect_6_comma_in_a_string():
    text = f"{BRAIN}\nHello, a=world"
    program = 'normalize(source_str="Hello, a=world", target_str="")'
    assert reference(program, text).text == text
    assert run(program, text).text == f"{BRAIN}\n"
    assert reference('normalize(source_str="Share, a=this")').text.endswith("this this page")
    assert_unchanged(run('normalize(source_str="Share, a=this")'), not_found=1)


def test_defect_7_a_string_with_a_newline():
    program = 'normalize(source_str="know.\nShare this page", target_str="know.")'
    assert "k" not in reference(program.replace("know", "k")).text.replace("know", "")
    assert run(program).text == "\n".join([*LINES[:5], LINES[5]])


def test_defect_8_a_replacement_affects_only_whole_words_in_its_window():
    text = f"Share\n{BRAIN}"
    programs = [ModelOutput("keep_chunk()", "stop"), ModelOutput('normalize("Share","")', "stop")]
    windows = [WindowProgram(0, 4, programs[0]), WindowProgram(4, 8, programs[1])]
    result = replay(text, None, windows, Policy(), ProgramFormat())
    assert result.text == text[: -len("Share this page")] + " this page"
    assert_unchanged(run('normalize("a","")'), inside_word=1)


def test_defect_9_a_blank_string_is_never_replaced():
    assert " " not in reference('normalize(source_str=" ")', "a b\t" * 20).text
    assert_unchanged(run('normalize(source_str=" ")'), blank_source=1)


def test_defect_10_escapes_and_quotes():
    text = f'{BRAIN}\nsay "hi"\tnow'
    for program in (r'normalize("\"hi\"\tnow", "so\n")', "normalize('\"hi\"\tnow', 'so\\n')"):
        assert run(program, text).text == f"{BRAIN}\nsay so\n"
        assert reference(program, text).text == text


def test_defect_11_all_true_in_a_comment():
    program = "remove_lines(start=6, end=6) # not all=True"
    assert reference(program).outcome == "dropped"
    assert run(program).text == "\n".join(LINES[:6])


def test_defect_12_a_window_cannot_remove_lines_of_another():
    program = ModelOutput("remove_lines(start=0, end=0)", "stop")
    windows = [WindowProgram(0, 3, ModelOutput("", "stop")), WindowProgram(3, 7, program)]
    assert_unchanged(replay(BRAIN, None, windows, Policy(), ProgramFormat()), outside_window=1)
    past = [WindowProgram(0, 3, ModelOutput("remove_lines(4, 4)", "stop"))]
    assert_unchanged(replay(BRAIN, None, past, Policy(), ProgramFormat()), no_such_line=1)
    assert replay(BRAIN, None, windows, "reference", ProgramFormat()).lines_removed == 1


@pytest.mark.parametrize("policy", [Policy(), "reference"])
def test_defect_13_memory_is_bounded_for_large_ranges_and_growing_replacements(policy):
    growth = 'normalize(source_str="a", target_str="aaaaaaaaaa")\n' * 6
    tracemalloc.start()
    run("remove_lines(start=0, end=10000000)", "one line " * 9, policy=policy)
    small = tracemalloc.get_traced_memory()[1]
    result = run(growth, "a " * 3000, policy=policy)
    tracemalloc.stop()
    assert small < 200_000
    expected = "reference_memory" if policy == "reference" else ""
    assert (result.reason, result.text) == (expected, "" if expected else "a " * 3000)


def test_parser_leading_white_space_and_several_calls_on_a_line():
    program = "\t remove_lines(0, 0)\n  remove_lines(1, 1) remove_lines(2, 2)"
    assert run(program).lines_removed == 3
    assert reference(program.replace("(", "(start=").replace(", ", ", end=")).lines_removed == 0


def test_parser_rejects_unknown_functions_and_prefixes():
    assert_unchanged(run("remove_lines_but_not_really(start=0, end=0)"), unknown_call=1)
    assert_unchanged(run("delete(0)"), unknown_call=1)


def test_parser_reads_named_arguments():
    assert run("remove_lines(end=2, start=0)").lines_removed == 3
    assert reference("remove_lines(end=2, start=0)").lines_removed == 0


def test_parser_invalid_ranges_and_missing_strings_are_rejected():
    assert_unchanged(run("remove_lines(-2, 1)"), outside_window=1)
    assert_unchanged(run("remove_lines(4, 2)"), reversed_range=1)
    assert_unchanged(run('normalize("nowhere")'), not_found=1)
    assert_unchanged(run("remove_lines(start=0x1, end=3)"), bad_arguments=1)
    assert run("remove_lines(start=004, end=006)").lines_removed == 3


def test_errors_one_unterminated_call_is_one_error():
    program = "remove_lines(start=6, end=6)\nremove_lines(start=1, end=5"
    assert reference(program).text == BRAIN
    assert run(program).text == "\n".join(LINES[:6])


def test_errors_a_range_past_the_end_is_clipped_or_rejected_but_not_both():
    assert reference("remove_lines(start=6, end=7)").lines_removed == 1
    assert reference("remove_lines(start=6, end=7)").rejected == {"reference_errors": 1}
    clipped = run("remove_lines(start=6, end=7)")
    assert (clipped.lines_removed, clipped.rejected) == (1, {})
    assert clipped.lenient == {"clipped_range": 1}
    assert_unchanged(run("remove_lines(start=6, end=8)"), outside_window=1)
    strict = Policy(strict=True)
    assert_unchanged(run("remove_lines(start=6, end=7)", policy=strict), outside_window=1)


def test_errors_are_counted_for_each_window():
    program = "remove_lines(0, 0)\nremove_lines(1, 9)"
    result = run(program)
    assert (result.lines_removed, result.rejected) == (1, {"outside_window": 1})
    bad = ModelOutput("remove_lines(0, 99)\nremove_lines(4, 99)\nremove_lines(1, 1)", "stop")
    windows = [
        WindowProgram(0, 6, bad),
        WindowProgram(6, 7, ModelOutput("remove_lines(6, 6)", "stop")),
    ]
    result = replay(BRAIN, None, windows, Policy(), ProgramFormat())
    assert result.text == "\n".join(LINES[:6])
    assert result.rejected == {"outside_window": 2, "error_budget": 1}


@pytest.mark.parametrize("text", ["", "  ", "\n\n"])
def test_thresholds_a_document_without_words_is_kept(text):
    assert_unchanged(run("untouch_doc()", text), text)


def test_thresholds_a_short_document_is_not_emptied():
    assert_unchanged(run("untouch_doc()", "ten words or less"), "ten words or less")
    assert run("remove_lines(1, 1)", "ten words or less\nShare").text == "ten words or less"


def test_thresholds_chinese_is_not_one_word():
    text = "这是一篇关于学习的很长的文章，里面没有空格。\n分享到微博"
    assert reference("untouch_doc()", text).outcome == "dropped"
    assert_unchanged(run("untouch_doc()", text), text)
    assert run("remove_lines(1, 1)", text).text == text.partition("\n")[0]


def test_thresholds_removing_nearly_everything_never_gives_the_original_back():
    text = f"{'county facts ' * 200}\nend"
    program = "remove_lines(0, 0)"
    assert (run(program, text).outcome, run(program, text).reason) == ("dropped", "short")
    assert reference("remove_lines(start=0, end=0)", text).reason == "reference_removed_share"
    limited = run(program, text, policy=Policy(max_removed_share=0.95))
    assert (limited.outcome, limited.reason) == ("quarantined", "removed_share")
    menus = f"{'county facts ' * 2000}\n{'The county has nine good words for you here. ' * 3}"
    assert run(program, menus).text == menus.partition("\n")[2]
