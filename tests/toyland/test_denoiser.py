"""The U-Net's training is a function of its seed, and a resumed one equals an uninterrupted one."""

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import CLIPTextModel, CLIPTokenizer

from toyland import denoiser
from toyland.code import CHANNELS, PatchCode
from toyland.denoiser import Material, train_unet
from toyland.denoiser_state import DenoiserRecipe, TrainingState, new_state
from toyland.reader_net import Answers, ReaderNet
from toyland.render import render
from toyland.scenes import scene_number
from toyland.shapes import SHAPES
from toyland.text import WIDTH
from toyland.unet import build_scheduler, build_unet, draw_latents

CPU = torch.device("cpu")
RECIPE = DenoiserRecipe(batch_size=3, constant_steps=8, decay_steps=4, warmup_steps=2)
PAIRED = DenoiserRecipe(batch_size=3, constant_steps=8, decay_steps=4, warmup_steps=2, average_every=2)


def tiny_unet() -> UNet2DConditionModel:
    """The base's U-Net at a fraction of its size."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        block_out_channels=(16, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=1,
        norm_num_groups=8,
    )


@pytest.fixture(scope="module")
def material(tokenizer: CLIPTokenizer, text_encoder: CLIPTextModel) -> Material:
    pictures = np.stack([np.asarray(render(scene_number(11, index))) for index in range(12)])
    code = PatchCode.fit(pictures)
    return Material(pictures=pictures, scene_seed=11, code=code, tokenizer=tokenizer, text_encoder=text_encoder)


def _steps(material: Material, state: TrainingState, start: int, count: int) -> list[float]:
    steps: Iterator[Any] = train_unet(material, RECIPE, state, start, CPU)
    return [float(loss) for _, (_, loss) in zip(range(count), steps, strict=False)]


def test_a_resumed_training_equals_an_uninterrupted_one(material: Material, tmp_path: Path) -> None:
    whole = new_state(RECIPE, CPU, tiny_unet)
    losses = _steps(material, whole, 0, 4)

    first = new_state(RECIPE, CPU, tiny_unet)
    before = _steps(material, first, 0, 2)
    first.save(tmp_path / "state.safetensors", 2)
    torch.manual_seed(99)  # nothing of a resumed run may come from the process that it runs in
    second = new_state(DenoiserRecipe(seed=123), CPU, tiny_unet)
    start = second.load(tmp_path / "state.safetensors")
    assert start == 2
    assert before + _steps(material, second, start, 2) == losses
    for name, value in whole.unet.state_dict().items():
        assert torch.equal(second.unet.state_dict()[name], value), name
    for name, value in whole.average.items():
        assert torch.equal(second.average[name], value), name
    assert [path.name for path in tmp_path.iterdir()] == ["state.safetensors"]


READING = replace(RECIPE, reading_weight=0.05)


@pytest.fixture(scope="module")
def reader() -> ReaderNet:
    torch.manual_seed(4)
    return ReaderNet(16).eval().requires_grad_(False)


def _trained(material: Material, recipe: DenoiserRecipe, count: int = 2) -> tuple[list[float], TrainingState]:
    state = new_state(recipe, CPU, tiny_unet)
    steps: Iterator[Any] = train_unet(material, recipe, state, 0, CPU)
    return [float(loss) for _, (_, loss) in zip(range(count), steps, strict=False)], state


def test_a_resumed_training_with_a_reader_equals_an_uninterrupted_one(
    material: Material, reader: ReaderNet, tmp_path: Path
) -> None:
    reading = replace(material, reader=reader)
    losses, whole = _trained(reading, READING, 4)
    before, first = _trained(reading, READING, 2)
    first.save(tmp_path / "state.safetensors", 2)
    second = new_state(replace(READING, seed=123), CPU, tiny_unet)
    start = second.load(tmp_path / "state.safetensors")
    steps: Iterator[Any] = train_unet(reading, READING, second, start, CPU)
    assert before + [float(loss) for _, (_, loss) in zip(range(2), steps, strict=False)] == losses
    for name, value in whole.unet.state_dict().items():
        assert torch.equal(second.unet.state_dict()[name], value), name


class Unread(ReaderNet):
    """Fails when it is asked."""

    def forward(self, latents: torch.Tensor, rows: torch.Tensor, places: torch.Tensor) -> Answers:
        raise AssertionError("a reader without weight was asked")


def test_without_weight_a_reader_changes_nothing(material: Material) -> None:
    losses, state = _trained(material, RECIPE)
    others, other = _trained(replace(material, reader=Unread(16)), RECIPE)
    assert others == losses
    for name, value in state.unet.state_dict().items():
        assert torch.equal(other.unet.state_dict()[name], value), name


def test_the_readers_error_is_added_by_its_weight(material: Material, reader: ReaderNet) -> None:
    """To the first step's loss, and to nothing that is random."""
    plain, read, twice = (
        _trained(replace(material, reader=reader), replace(RECIPE, reading_weight=weight), 1)[0][0]
        for weight in (0.0, 0.05, 0.1)
    )
    assert read > plain
    np.testing.assert_allclose(twice - plain, 2 * (read - plain), rtol=1e-4)


def test_a_reader_is_never_trained(material: Material, reader: ReaderNet) -> None:
    before = {name: value.clone() for name, value in reader.state_dict().items()}
    _trained(replace(material, reader=reader), READING)
    for name, value in reader.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_weight_without_a_reader_is_refused(material: Material) -> None:
    with pytest.raises(ValueError, match=r"reading_weight = 0\.05 needs a reader"):
        next(train_unet(material, READING, new_state(READING, CPU, tiny_unet), 0, CPU))


def test_the_moving_average_follows_the_weights(material: Material) -> None:
    state = new_state(RECIPE, CPU, tiny_unet)
    start = {name: value.clone() for name, value in state.average.items()}
    _steps(material, state, 0, 1)
    for name, parameter in state.unet.named_parameters():
        expected = 0.1 * start[name] + 0.9 * parameter.detach()  # the first step's decay is 1 / 10
        torch.testing.assert_close(state.average[name], expected, rtol=1e-5, atol=1e-7)


def test_a_batch_is_a_function_of_seed_and_step(material: Material) -> None:
    first, again, other = (denoiser._batch(material, RECIPE, step) for step in (3, 3, 4))
    assert (first.pictures == again.pictures).all()
    assert (first.ids == again.ids).all()
    assert not (first.ids == other.ids).all()


class NoTorch(TorchDispatchMode):
    """Fails at any operation on tensors."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise AssertionError(f"torch ran {func}")


def test_a_batch_is_prepared_without_torch(material: Material) -> None:
    # torch's threads in the preparing thread and those of the training would wait for each other
    with NoTorch():
        batch = denoiser._batch(material, replace(RECIPE, reading_weight=0.1), 0)
    assert all(isinstance(array, np.ndarray) for array in vars(batch).values())


def test_things_weigh_more_than_the_background_and_accessories_most() -> None:
    scenes = [scene_number(11, index) for index in range(40)]
    weights = denoiser._latent_weights(scenes, 4.0, 16.0)
    assert weights.shape == (40, 1, 16, 16)
    assert set(np.unique(weights)) == {1.0, 4.0, 16.0}
    for row, scene in enumerate(scenes):
        for thing in scene.things:
            x, y = SHAPES[thing.kind].top
            at_top = weights[row, 0, int((thing.y + (y - 0.3) * thing.size) * 16), int((thing.x + x * thing.size) * 16)]
            assert at_top == (4.0 if thing.look.accessory == "none" else 16.0)
            assert weights[row, 0, int((thing.y + 0.7 * thing.size) * 16), int(thing.x * 16)] == 4.0
        assert (weights[row, 0, -1] == 1.0).any() or len(scene.things) > 1


def test_noise_and_target_are_those_of_v_prediction() -> None:
    alphas = build_scheduler().alphas_cumprod
    latents = torch.randn(4, CHANNELS, 16, 16, generator=torch.Generator().manual_seed(1))
    noised = denoiser._noised(latents, alphas, RECIPE, 5)
    alpha = alphas[noised.timesteps].double()[:, None, None, None]
    noise = (noised.latents.double() - alpha.sqrt() * latents) / (1 - alpha).sqrt()
    velocity = build_scheduler().get_velocity(latents, noise.float(), noised.timesteps)
    torch.testing.assert_close(noised.target, velocity, rtol=1e-3, atol=1e-3)


def test_timesteps_are_drawn_as_often_as_min_snr_would_weigh_them() -> None:
    alphas = build_scheduler().alphas_cumprod
    drawn = denoiser._noised(torch.zeros(100_000, 1, 1, 1), alphas, RECIPE, 5).timesteps
    snr = (alphas / (1 - alphas)).double()
    expected = snr.clamp(RECIPE.least_snr, RECIPE.snr_gamma) / (snr + 1)
    shares = torch.bincount(drawn, minlength=1000).reshape(10, 100).sum(1) / len(drawn)
    torch.testing.assert_close(shares.double(), expected.reshape(10, 100).sum(1) / expected.sum(), rtol=0.05, atol=0)


def _train_together_and_apart(rank: int, folder: Path, material: Material) -> None:
    """Both in one process: other processes may sum in another order, and AdamW's first steps make much of a little."""
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
    store = dist.FileStore(str(folder / "store"), 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, recipe in (("together", PAIRED), ("apart", replace(PAIRED, average_every=1000))):
        state = new_state(recipe, CPU, tiny_unet)
        for _ in zip(range(2), train_unet(material, recipe, state, 0, CPU), strict=False):
            pass
        state.save(folder / f"{name}-{rank}.safetensors", 2)
    dist.destroy_process_group()


@pytest.mark.slow  # two processes that import torch; only the embedded base is trained so
def test_two_processes_go_on_from_the_mean_of_what_each_has(material: Material, tmp_path: Path) -> None:
    torch.multiprocessing.start_processes(
        _train_together_and_apart, (tmp_path, material), nprocs=2, start_method="spawn"
    )
    together, apart = (
        [load_file(tmp_path / f"{name}-{rank}.safetensors") for rank in range(2)] for name in ("together", "apart")
    )
    assert not torch.equal(apart[0]["unet.conv_in.weight"], apart[1]["unet.conv_in.weight"])
    for name, value in together[0].items():
        assert torch.equal(value, together[1][name]), name
        torch.testing.assert_close(value, (apart[0][name] + apart[1][name]) / 2, rtol=0, atol=1e-7)


def test_the_rate_warms_up_and_falls_to_zero() -> None:
    rates = [RECIPE.rate(step) for step in range(RECIPE.steps + 1)]
    assert rates[0] == RECIPE.learning_rate / 2
    assert rates[1:9] == [RECIPE.learning_rate] * 8
    assert rates[-1] == 0
    assert all(rate > later for rate, later in pairwise(rates[8:]))


def test_the_u_net_reads_text_at_two_resolutions() -> None:
    with torch.device("meta"):
        unet = build_unet()
    readers = {name.split(".attentions")[0] for name, _ in unet.named_modules() if name.endswith("attn2")}
    assert readers == {"down_blocks.1", "down_blocks.2", "mid_block", "up_blocks.0", "up_blocks.1"}
    assert sum(parameter.numel() for parameter in unet.parameters()) * 2 < 25 * 2**20  # bytes in fp16


def test_drawn_latents_depend_on_their_own_seed_only(text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer) -> None:
    torch.manual_seed(3)
    unet = tiny_unet().eval()
    ids = tokenizer(["a red cat", "a blue mug", ""], padding="max_length", return_tensors="pt")["input_ids"]
    hidden = text_encoder(ids).last_hidden_state
    together = draw_latents(unet, hidden[:2], hidden[2:], [5, 6], steps=2)
    alone = draw_latents(unet, hidden[1:2], hidden[2:], [6], steps=2)
    torch.testing.assert_close(together[1:], alone, rtol=1e-4, atol=1e-4)
