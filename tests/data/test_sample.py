"""The sample that a BPE is trained on is bounded and spread over the text."""

from moebius.data.sample import sample


def test_the_sample_is_bounded_and_spread_over_the_text(monkeypatch):
    monkeypatch.setattr("moebius.data.sample.SAMPLE_CHARACTERS", 1000)
    monkeypatch.setattr("moebius.data.sample.PIECE_CHARACTERS", 10)
    texts = [f"{number:010d}" * 3 for number in range(1000)]
    pieces = sample(texts)
    assert 500 <= sum(map(len, pieces)) <= 1000
    numbers = [int(piece) for piece in pieces]
    assert numbers[0] < 20
    assert numbers[-1] > 980
    assert pieces == sample(iter(texts))


def test_a_sample_of_a_sample_is_the_same_sample(monkeypatch):
    monkeypatch.setattr("moebius.data.sample.SAMPLE_CHARACTERS", 1000)
    monkeypatch.setattr("moebius.data.sample.PIECE_CHARACTERS", 10)
    pieces = sample(f"{number:010d}" * 3 for number in range(1000))
    assert sample(pieces) == pieces


def test_a_share_of_the_sample_is_smaller(monkeypatch):
    monkeypatch.setattr("moebius.data.sample.SAMPLE_CHARACTERS", 1000)
    monkeypatch.setattr("moebius.data.sample.PIECE_CHARACTERS", 10)
    pieces = sample([f"{number:010d}" for number in range(1000)], share=0.2)
    assert 100 <= sum(map(len, pieces)) <= 200


def test_the_text_that_is_read_for_the_sample_is_bounded(monkeypatch):
    monkeypatch.setattr("moebius.data.sample.READ_CHARACTERS", 100)
    endless = iter(lambda: "ten chars.", None)
    assert sample(endless) == ["ten chars."] * 10
