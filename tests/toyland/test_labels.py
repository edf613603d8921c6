"""The text encoder's answers lie on the tokens that say them."""

import numpy as np
import pytest
import torch
from transformers import CLIPTextModel, CLIPTokenizer

from toyland.captions import Caption, Mention, caption
from toyland.labels import COLOR_NAMES, IGNORE, MENTION_LABELS, SCENE_LABELS, caption_batch, label
from toyland.text import WIDTH, Reader, TextRecipe, build_text_encoder, train_text_encoder
from toyland.tokenizer import MAX_TOKENS
from toyland.world import Appearance, Scene, Thing, random_scene

LOOK = Appearance(body=(206, 38, 40), second=(242, 242, 242), third=(44, 92, 208), pattern="stripes", accessory="hat")


def _scene(look: Appearance = LOOK) -> Scene:
    things = (
        Thing(kind="cat", look=look, x=0.3, y=0.6, size=0.2),
        Thing(kind="mug", look=look, x=0.7, y=0.6, size=0.2),
    )
    return Scene(background="beach", things=things)


def _said(text: str, *mentions: tuple[str, set[str]], background: bool = True) -> Caption:
    spans = [
        Mention(start=text.index(phrase), end=text.index(phrase) + len(phrase), thing=index, named=frozenset(named))
        for index, (phrase, named) in enumerate(mentions)
    ]
    return Caption(text=text, mentions=tuple(spans), names_background=background, names_style=False)


def _answers(tokenizer: CLIPTokenizer, scene: Scene, said: Caption) -> dict[str, dict[str, str]]:
    """Of each label: token (with its position where it repeats) to answer."""
    batch = label([scene], [said], tokenizer, 32)
    tokens = tokenizer.convert_ids_to_tokens(batch.ids[0].tolist())
    options = {**MENTION_LABELS, **SCENE_LABELS}
    return {
        name: {
            f"{index}:{tokens[index].removesuffix('</w>')}": options[name][answer]
            for index, answer in enumerate(truth[0].tolist())
            if answer != IGNORE
        }
        for name, truth in batch.labels.items()
    }


def test_answers_lie_on_the_tokens_of_their_mention(tokenizer: CLIPTokenizer) -> None:
    said = _said("a red cat and a mug on the beach", ("a red cat", {"body"}), ("a mug", set()))
    answers = _answers(tokenizer, _scene(), said)
    assert answers["class"] == {"1:a": "cat", "2:red": "cat", "3:cat": "cat", "5:a": "mug", "6:mug": "mug"}
    assert answers["thing"] == {"1:a": "first", "2:red": "first", "3:cat": "first", "5:a": "second", "6:mug": "second"}
    assert set(answers["body"].values()) == {"red", "unsaid"}
    assert answers["body"]["3:cat"] == "red"
    assert answers["body"]["6:mug"] == "unsaid"


def test_the_scene_is_known_only_after_the_last_mention(tokenizer: CLIPTokenizer) -> None:
    said = _said("a cat and a mug on the beach", ("a cat", set()), ("a mug", set()))
    answers = _answers(tokenizer, _scene(), said)
    positions = [int(key.split(":")[0]) for key in answers["background"]]
    assert positions == list(range(6, 32))  # start, five words, then "on"
    assert set(answers["background"].values()) == {"beach"}
    assert set(answers["class 0"].values()) == {"cat"}
    assert set(answers["class 1"].values()) == {"mug"}
    assert set(answers["class 2"].values()) == {"absent"}


def test_what_a_caption_leaves_out_is_unsaid(tokenizer: CLIPTokenizer) -> None:
    said = _said("a cat and a mug", ("a cat", set()), ("a mug", {"accessory"}), background=False)
    bare = Appearance(**{**vars(LOOK), "accessory": "none"})
    answers = _answers(tokenizer, _scene(bare), said)
    for name in ("body", "second", "third", "pattern", "accessory", "background"):
        assert set(answers[name].values()) == {"unsaid"}


@pytest.mark.parametrize(("named", "answer"), [({"pattern"}, "unsaid"), ({"pattern", "second", "body"}, "plain")])
def test_plain_is_said_only_with_the_second_colour(tokenizer: CLIPTokenizer, named: set[str], answer: str) -> None:
    plain = Appearance(**{**vars(LOOK), "pattern": "plain"})
    said = _said("a cat and a mug", ("a cat", named), ("a mug", set()))
    assert _answers(tokenizer, _scene(plain), said)["pattern"]["2:cat"] == answer


def test_labelled_tokens_spell_the_mentions(tokenizer: CLIPTokenizer) -> None:
    rng = np.random.default_rng(2)
    scenes = [random_scene(rng) for _ in range(60)]
    captions = [caption(scene, rng) for scene in scenes]
    batch = label(scenes, captions, tokenizer, MAX_TOKENS)
    for row, said in enumerate(captions):
        for mention in said.mentions:
            inside = batch.labels["thing"][row] == mention.thing
            spelled = "".join(tokenizer.convert_ids_to_tokens(batch.ids[row][inside].tolist()))
            assert spelled.replace("</w>", " ").strip() == said.text[mention.start : mention.end].replace(",", " ,")


def test_every_question_has_an_answer_for_every_row(tokenizer: CLIPTokenizer) -> None:
    batch = caption_batch(np.random.default_rng(3), tokenizer, 8)
    for name, truth in batch.labels.items():
        assert truth.shape == batch.ids.shape
        assert (truth != IGNORE).any(1).all(), name
        assert truth.max() < len({**MENTION_LABELS, **SCENE_LABELS}[name])


def test_the_loss_is_that_of_guessing_for_a_reader_that_knows_nothing(tokenizer: CLIPTokenizer) -> None:
    reader = Reader()
    for parameter in reader.parameters():
        parameter.data.zero_()
    batch = caption_batch(np.random.default_rng(4), tokenizer, 4)
    sizes = [len(options) for options in (*MENTION_LABELS.values(), *SCENE_LABELS.values())]
    expected = float(np.mean(np.log(sizes)))
    loss = reader.loss(torch.zeros(*batch.ids.shape, WIDTH), batch.labels)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    assert "unsaid" in COLOR_NAMES


def test_training_teaches_the_text_encoder_and_repeats_exactly(tokenizer: CLIPTokenizer) -> None:
    recipe = TextRecipe(steps=6, batch_size=8)
    runs: list[list[float]] = []
    for _ in range(2):
        torch.manual_seed(recipe.seed)
        encoder = build_text_encoder(tokenizer)
        runs.append([float(loss) for _, loss in train_text_encoder(encoder, tokenizer, recipe, torch.device("cpu"))])
    assert runs[0] == runs[1]
    assert runs[0][-1] < runs[0][0]


def test_padding_does_not_change_what_words_mean(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> None:
    short, long = (
        tokenizer("a red cat", padding="max_length", max_length=length, return_tensors="pt")["input_ids"]
        for length in (16, MAX_TOKENS)
    )
    hidden = [text_encoder(ids).last_hidden_state[:, :5] for ids in (short, long)]
    torch.testing.assert_close(hidden[0], hidden[1], rtol=1e-4, atol=1e-5)
