"""What was read and what was passed over, in words; and loudly if most was passed over."""

from moebius.data.tally import METADATA, Amount, Tally, joined_lines


def test_the_lines_say_what_was_read_by_kind_and_what_was_not_and_why():
    tally = Tally(
        read={"CSV": Amount(1, 1, 1), "plain text (gzip)": Amount(1200, 3400, 5_600_000)}
    )
    tally.pass_over("binary", "a.png")
    tally.pass_over("binary", "b.png")
    tally.pass_over("empty", "c.txt")
    tally.add("d.jsonl:3: column 1 is not JSON")
    tally.add("d.jsonl:4: column 1 is not JSON")
    assert tally.lines() == [
        "read 1 file of CSV (1 document, 1 byte); "
        "1,200 files of plain text (gzip) (3,400 documents, 5.6 MB)",
        "passed over: binary: 2 files, such as a.png; empty: 1 file, c.txt",
        "left out 2 documents that could not be read; the first: d.jsonl:3: column 1 is not JSON",
    ]
    assert Tally().lines() == ["read nothing"]


def test_the_line_is_loud_if_most_files_were_passed_over():
    tally = Tally(read={"CSV": Amount(files=2)})
    tally.pass_over("binary", "a", 2)
    tally.pass_over(METADATA, "state.json", 100)
    assert tally.lines()[1].startswith("passed over: ")
    tally.pass_over("empty", "b")
    assert tally.lines()[1].startswith("WARNING: most files were passed over: ")


def test_names_cannot_control_a_terminal():
    tally = Tally()
    tally.pass_over("binary", "a\x1b]0;title\x07\n\udcff")
    assert tally.lines()[1] == "WARNING: most files were passed over: binary: 1 file, " + (
        "a\\x1b]0;title\\x07 \\udcff"
    )


def test_several_sources_have_lines_of_their_own():
    tallies = [Tally(read={"CSV": Amount(1, 2, 3)}), Tally()]
    assert joined_lines(["a.csv", "b"], tallies) == [
        "a.csv: read 1 file of CSV (2 documents, 3 bytes)",
        "b: read nothing",
    ]
    assert joined_lines(["b"], tallies[1:]) == ["read nothing"]
