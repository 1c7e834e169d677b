"""AttentionMaps and AttentionLinks: words merged as said, found as asked, shown bounded and escaped."""

import copy
import pickle
from html.parser import HTMLParser

import numpy as np
import pytest
from minilm import minilm_folder

import headwise as hw
from headwise._tables import TABLE_COLUMNS, Cell, shown, text_table, width
from headwise.testing import assert_same_bits

pytestmark = pytest.mark.once

SENTENCE = "a dog ate the food because it was hungry"


@pytest.fixture(scope="module")
def encoder():
    return hw.TextEncoder.from_pretrained(minilm_folder())


@pytest.fixture
def maps(rng):
    """Return maps of "Dogs tokenizing" and "the dogs": two sub-tokens, a word that occurs twice."""
    tokens = ["[CLS]", "dogs", "token", "##izing", "[SEP]", "the", "dogs", "[SEP]"]
    return hw.AttentionMaps(
        softmaxed(rng, 2, 3, len(tokens)),
        tokens,
        [None, 0, 1, 1, None, 0, 1, None],
        [None, 0, 0, 0, None, 1, 1, None],
        [(0, 0), (0, 4), (5, 10), (10, 15), (0, 0), (0, 3), (4, 8), (0, 0)],
    )


def softmaxed(rng, layers, heads, length):
    return hw.softmax(rng.standard_normal((layers, heads, length, length)).astype(np.float32))


def plain_maps(rng, words, layers=2, heads=3):
    """Return maps of one text with one token for each word and no special tokens."""
    n = len(words)
    return hw.AttentionMaps(softmaxed(rng, layers, heads, n), words, range(n), [0] * n, [(0, 0)] * n)


# ---- words -------------------------------------------------------------------------------------------------


def test_words_are_merged_and_special_tokens_stand_apart(maps):
    assert maps.words == ("[CLS]", "dogs", "tokenizing", "[SEP]", "the", "dogs", "[SEP]")
    assert maps.special == (True, False, False, True, False, False, True)
    assert maps.word_ids == (None, 0, 1, 1, None, 0, 1, None)
    assert len(maps.tokens) == len(maps) == 8


def test_equal_word_numbers_of_two_texts_are_two_words(rng):
    maps = hw.AttentionMaps(softmaxed(rng, 1, 1, 2), ["a", "b"], [0, 0], [0, 1], [(0, 1), (0, 1)])
    assert maps.words == ("a", "b")


@pytest.mark.parametrize(
    ("tokens", "word"),
    [
        (["token", "##iz", "##ing"], "tokenizing"),
        (["##"], "##"),
        (["Ġtoken", "izing"], "tokenizing"),
        (["▁token", "izing"], "tokenizing"),
        (["▁"], "▁"),
    ],
)
def test_words_are_spelled_from_tokens(rng, tokens, word):
    n = len(tokens)
    maps = hw.AttentionMaps(softmaxed(rng, 1, 1, n), tokens, [0] * n, [0] * n, [(0, 0)] * n)
    assert maps.words == (word,)


def test_words_are_cut_from_the_texts_where_these_are_known(rng):
    sources = ["Naïve 😀", "Dogs"]
    maps = hw.AttentionMaps(
        softmaxed(rng, 1, 1, 5),
        ["[CLS]", "na", "##ive", "[UNK]", "dogs"],
        [None, 0, 0, 1, 0],
        [None, 0, 0, 0, 1],
        [(0, 0), (0, 2), (2, 5), (6, 7), (0, 4)],
        sources,
    )
    assert maps.words == ("[CLS]", "Naïve", "😀", "Dogs")
    assert pickle.loads(pickle.dumps(maps)).words == maps.words


def test_weights_into_a_word_are_summed_and_from_it_averaged(maps):
    weights = maps.to_numpy().astype(np.float64)
    groups = [[0], [1], [2, 3], [4], [5], [6], [7]]
    want = np.empty((2, 3, 7, 7))
    for i, rows in enumerate(groups):
        for j, columns in enumerate(groups):
            want[:, :, i, j] = weights[:, :, rows][..., columns].sum(axis=-1).mean(axis=-1)
    merged = maps.to_words()
    np.testing.assert_allclose(merged, want, rtol=1e-6)
    np.testing.assert_allclose(merged.sum(axis=-1), 1.0, rtol=1e-6)
    kept = [1, 2, 4, 5]
    assert_same_bits(maps.to_words(special=False), merged[:, :, kept][..., kept])
    assert merged.dtype == np.float32


def test_where_nothing_is_merged_no_bit_changes(rng):
    maps = plain_maps(rng, ["a", "b", "c"])
    assert_same_bits(maps.to_words(), maps.to_numpy())


def test_results_are_copies_and_views_are_read_only(maps):
    before = maps.to_numpy()
    maps.to_numpy()[:] = 0
    maps.to_words()[:] = 0
    maps.links("the").to_numpy()[:] = 0
    assert_same_bits(maps.to_numpy(), before)
    assert_same_bits(maps[1, 2], before[1, 2])
    with pytest.raises(ValueError, match="read-only"):
        maps[1, 2][0] = 0


# ---- links -------------------------------------------------------------------------------------------------


def test_links_hold_the_weights_of_to_words(maps):
    links = maps.links("tokenizing")
    assert (links.word, links.position, links.words) == ("tokenizing", 2, maps.words)
    assert_same_bits(links.to_numpy(), maps.to_words()[:, :, 2])
    assert len(links) == 6
    for link in links:
        row = maps.to_words()[link.layer, link.head, 2]
        best = max((1, 4, 5), key=lambda at: row[at])  # neither special nor itself
        assert (link.position, link.word, link.weight) == (best, maps.words[best], float(row[best]))
        assert links[link.layer, link.head] == link
    ranked = maps.links("tokenizing", special=True, itself=True).ranked(-1, -1)
    assert (ranked[0].layer, ranked[0].head) == (1, 2)
    assert sorted(link.position for link in ranked) == list(range(7))
    assert [link.weight for link in ranked] == sorted((link.weight for link in ranked), reverse=True)


def test_a_word_is_found_by_name_case_and_position(maps, rng):
    assert maps.links("THE").position == 4
    assert maps.links(4).position == maps.links(np.int64(-3)).position == 4
    assert maps.links("dogs", occurrence=1).position == maps.links("dogs", occurrence=-1).position == 5
    assert maps.links("[SEP]", occurrence=0).position == 3
    exact = plain_maps(rng, ["It", "saw", "it"])
    assert exact.links("it").position == 2
    assert exact.links("It").position == 0
    assert exact.links("IT", occurrence=1).position == 2


@pytest.mark.parametrize(
    ("arguments", "keywords", "error", "match"),
    [
        (("cat",), {}, ValueError, r"\[CLS\] dogs tokenizing .*got 'cat'"),
        (("##izing",), {}, ValueError, "got '##izing'"),
        (("dogs",), {}, ValueError, r"'dogs' occurs 2 times; .* one of 0 \(word 1\), 1 \(word 5\)"),
        (("dogs",), {"occurrence": 2}, IndexError, "one of the 2 of 'dogs'"),
        ((1,), {"occurrence": 0}, ValueError, "occurrence: expected None"),
        ((7,), {}, IndexError, "-7 to 6, got 7"),
        ((1.0,), {}, TypeError, "integer"),
    ],
)
def test_words_that_are_not_there_or_not_one(maps, arguments, keywords, error, match):
    with pytest.raises(error, match=match):
        maps.links(*arguments, **keywords)


def test_a_lonely_word(encoder):
    maps = encoder.attentions("dog")
    with pytest.raises(ValueError, match="special=True"):
        maps.links("dog")
    assert {link.word for link in maps.links("dog", special=True)} <= {"[CLS]", "[SEP]"}
    assert repr(maps) == "AttentionMaps(6 layers, 12 heads, 3 tokens: [CLS] dog [SEP])"
    assert "[CLS] dog [SEP]" in maps._repr_html_()


def test_the_known_head_of_minilm(encoder):
    link = encoder.attentions(SENTENCE).links("it")[5, 11]
    assert (link.layer, link.head, link.word, link.position) == (5, 11, "dog", 2)
    assert round(link.weight, 2) == 0.6


def test_layers_and_heads_that_are_not_there(maps):
    with pytest.raises(IndexError):
        maps[2, 0]
    with pytest.raises(IndexError):
        maps.links("the")[0, 3]


# ---- construction ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("weights", "tokens", "ids", "match"),
    [
        ((1, 1, 2, 3), ["a", "b"], [0, 1], r"weights: expected \(layers, H, 2, 2\) for 2 tokens"),
        ((1, 2, 2), ["a", "b"], [0, 1], "weights"),
        ((1, 1, 2, 2), ["a", "b"], [0], "word_ids"),
        ((1, 1, 0, 0), [], [], "tokens: expected at least one"),
    ],
)
def test_what_does_not_fit_is_refused(weights, tokens, ids, match):
    with pytest.raises(ValueError, match=match):
        hw.AttentionMaps(np.zeros(weights), tokens, ids, [0] * len(tokens), [(0, 0)] * len(tokens))


def test_links_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"weights: expected \(layers, H, 1\)"):
        hw.AttentionLinks(np.zeros((1, 1, 2)), ["a"], 0, [0])
    with pytest.raises(ValueError, match="candidates"):
        hw.AttentionLinks(np.zeros((1, 1, 1)), ["a"], 0, [])


@pytest.mark.parametrize("copied", [lambda x: pickle.loads(pickle.dumps(x)), copy.deepcopy])
def test_copies(maps, copied):
    other = copied(maps)
    assert (repr(other), other.words, other.word_ids) == (repr(maps), maps.words, maps.word_ids)
    assert_same_bits(other.to_numpy(), maps.to_numpy())
    links = maps.links("the")
    assert str(copied(links)) == str(links)


# ---- tables ------------------------------------------------------------------------------------------------


def test_repr_shows_the_strongest_links_of_each_layer():
    weights = np.full((2, 1, 3, 3), 0.1)
    weights[0, 0, 1, 2], weights[1, 0, 2, 0], weights[:, :, 1, 1] = 0.8, 0.7, 0.9
    maps = hw.AttentionMaps(weights, ["a", "b", "c"], [0, 1, 2], [0] * 3, [(0, 0)] * 3)
    assert repr(maps).splitlines() == [
        "AttentionMaps(2 layers, 1 heads, 3 tokens: a b c)",
        "the strongest links between words in each layer:",
        "",
        "layer 0  head 0: b -> c 0.80",
        "layer 1  head 0: c -> a 0.70",
    ]


def test_tables_are_bounded(rng):
    maps = plain_maps(rng, ["x" * 500, *"abc" * 10], layers=40, heads=40)
    for text in (repr(maps), repr(maps.links(3))):
        lines = text.splitlines()
        assert len(lines) <= 60
        assert max(map(len, lines[2:])) <= TABLE_COLUMNS
        assert "shown)" in lines[-1]
    assert len(maps._repr_html_()) < 60_000
    assert len(maps.links(3)._repr_html_()) < 60_000
    whole = str(maps.links(3))
    assert "layer 39" in whole
    assert "head 39" in whole
    assert max(map(len, whole.splitlines())) <= TABLE_COLUMNS


class Cells(HTMLParser):
    """Collect the tags and the text of a page."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.text, self.styles = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.styles += [value for name, value in attributes if name == "style"]
        assert {name for name, _ in attributes} <= {"style"}

    def handle_data(self, data):
        self.text.append(data)


def test_html_is_escaped_and_coloured_by_weight(rng):
    evil = ["<script>", "&amp;", '"><b>', "plain"]
    maps = plain_maps(rng, evil, layers=1, heads=1)
    for page in (maps._repr_html_(), maps.links("<script>")._repr_html_()):
        cells = Cells(page)
        assert set(cells.tags) <= {"div", "table", "thead", "tbody", "tr", "th", "td"}
        assert any("<script>" in text for text in cells.text)
    link = maps.links("plain")[0, 0]
    page = maps.links("plain")._repr_html_()
    assert f"rgba(40,120,240,{0.5 * link.weight:.2f})" in page
    assert not any("color:" in style.replace("color:inherit", "") for style in Cells(page).styles)


def test_words_that_would_disturb_a_terminal():
    assert shown("a\x1b[31mb\n") == "a\ufffd[31mb\ufffd"
    assert shown("a\u202eb\u200d") == "ab"
    assert shown("x" * 12) == "x" * 12
    assert shown("x" * 13) == "x" * 11 + "…"
    assert shown("語" * 7) == "語" * 5 + "…"
    assert width("語e\u0301") == 3


def test_wide_characters_keep_columns_in_line():
    cells = [[Cell("語 1", 1.0), Cell("a", 0.1)], [Cell("e\u0301", 0.5), Cell("b", 0.2)]]
    table = text_table(["x", "yy"], ["one", "two"], cells)
    assert table == "    one   two\nx   語 1  a\nyy  e\u0301     b"
    assert text_table([], [], []) == ""
