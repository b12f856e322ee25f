"""Vocabularies of T5 as pipelines hold them: a model of sentencepiece and nothing else."""

import json

import sentencepiece

from distillkit import PipelineParts
from distillkit.models.text.load import load_tokenizer


def test_a_vocabulary_of_sentencepiece_alone_is_read(tmp_path):
    sentences, place = tmp_path / "sentences.txt", tmp_path / "tokenizer"
    things = [f"a {colour} {shape}" for colour in ("red", "green", "blue") for shape in ("circle", "square")]
    sentences.write_text("\n".join(things * 20))
    place.mkdir()
    sentencepiece.SentencePieceTrainer.train(
        input=str(sentences), model_prefix=str(place / "spiece"), vocab_size=24, hard_vocab_limit=False, pad_id=0,
        eos_id=1, unk_id=2, bos_id=-1, minloglevel=2,
    )  # fmt: skip
    (place / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "T5Tokenizer", "extra_ids": 0, "model_max_length": 20})
    )
    tokenizer = load_tokenizer(PipelineParts(source=str(tmp_path)), "tokenizer")
    red, blue = tokenizer(["a red circle", "a blue circle"]).input_ids
    assert red[-1] == blue[-1] == 1 and 2 not in red and red != blue
