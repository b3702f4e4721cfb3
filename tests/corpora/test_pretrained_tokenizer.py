import json

import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from corpora import pretrained_tokenizer
from corpora import tokenizer as plain
from corpora.tables import DataError, Document
from corpora.tokens import TextSettings

WORDS = ["<pad>", "<s>", "</s>", "<unk>", "alpha", "beta", "gamma"]
PAD, FIRST, LAST = 0, 1, 2
FRAMES = {"<s> $A </s>": ([FIRST], [LAST]), "$A </s>": ([], [LAST]), "<s> $A": ([FIRST], []), "$A": ([], [])}


def write(folder, *, frame="<s> $A </s>", normalizer=None, **config):
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: n for n, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.normalizer, backend.pre_tokenizer = normalizer, pre_tokenizers.Whitespace()
    backend.add_special_tokens(WORDS[:3])
    backend.post_processor = processors.TemplateProcessing(
        single=frame, special_tokens=[("<s>", FIRST), ("</s>", LAST)]
    )
    backend.save(str(folder / "tokenizer.json"))
    if config:
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return str(folder)


@pytest.mark.parametrize("frame", FRAMES)
def test_the_frame_is_that_of_the_post_processor(tmp_path, frame):
    made = pretrained_tokenizer.load(write(tmp_path, frame=frame))
    first, last = FRAMES[frame]
    assert tuple(made.frame) == (first, last)
    table = TextSettings(4, 4, special_tokens=True).queries(made, ["alpha beta gamma beta alpha"])
    assert table.tokens.tolist() == [*first, *[4, 5, 6, 5][: 4 - len(first) - len(last)], *last]
    assert made.pad_id == table.pad_id == PAD


def test_a_title_without_a_separator_stands_right_before_its_text(tmp_path):
    made = pretrained_tokenizer.load(write(tmp_path))
    table = TextSettings(9, 9, special_tokens=True).passages(made, [Document("0", "alpha", "beta")])
    assert table.tokens.tolist() == [FIRST, 4, 5, LAST]


def test_ends_that_the_config_asks_for_are_added(tmp_path):
    path = write(
        tmp_path, frame="<s> $A", add_eos_token=True, add_bos_token=True, eos_token="</s>", bos_token="x"
    )
    assert tuple(pretrained_tokenizer.load(path).frame) == ([FIRST], [LAST])
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(dict(add_eos_token=True)))
    with pytest.raises(DataError, match="add_eos_token is true and eos_token is None"):
        pretrained_tokenizer.load(path)


def test_what_the_config_says_of_the_normalizer_counts(tmp_path):
    path = write(tmp_path, normalizer=normalizers.BertNormalizer(lowercase=False), do_lower_case=True)
    assert pretrained_tokenizer.load(path).tokens("ALPHA") == ["alpha"]
    path = write(tmp_path, do_lower_case=True)  # it is no normalizer of BERT's
    assert pretrained_tokenizer.load(path).tokens("ALPHA") == ["<unk>"]
    assert pretrained_tokenizer.load(path, lower_case=True).tokens("ALPHA") == ["alpha"]


def test_the_padding_of_the_config_comes_back_from_a_file(tmp_path):
    made = pretrained_tokenizer.load(write(tmp_path, pad_token={"content": "</s>"}))
    assert made.pad_id == LAST
    made.save(tmp_path / "saved.json")
    again = plain.load(str(tmp_path / "saved.json"))
    assert again.pad_id == LAST
    assert again.encode(["alpha", "alpha beta"], 9) == [[4], [4, 5]]  # and nothing is padded


def test_texts_cut_at_their_beginning_are_refused(tmp_path):
    with pytest.raises(DataError, match="truncation_side is 'left'; allowed: 'right'"):
        pretrained_tokenizer.load(write(tmp_path, truncation_side="left"))
    with pytest.raises(DataError, match=r"has no tokenizer\.json"):
        pretrained_tokenizer.load(str(tmp_path / "nowhere"))


def test_a_trained_tokenizer_is_written_with_its_frame(tmp_path):
    made = plain.train_wordpiece(["alpha beta"] * 5, vocab_size=60)
    pretrained_tokenizer.save(tmp_path, made, max_length=7, special_tokens=True)
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert backend.encode("alpha").ids == [made.cls_id, *made.encode(["alpha"], 9)[0], made.sep_id]
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert (config["model_max_length"], config["pad_token"], config["cls_token"]) == (7, "[PAD]", "[CLS]")
    assert pretrained_tokenizer.load(str(tmp_path)).frame == made.frame
