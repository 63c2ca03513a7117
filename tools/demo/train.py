"""Owns the training loop of the demo recogniser: losses, schedule, checkpoints, development score."""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - torch's own habit
from torch import Tensor

from demo.batches import Batch, Plan, feed
from demo.dataset import read
from demo.features import MELS, read_cmvn, stack, write_cmvn
from demo.metrics import Score, Truth
from demo.model import TAG_FRAMES, DemoSenseVoice, Shape
from demo.package import save
from demo.recognise import TrainedModel
from demo.tokenizer import vocabulary, write

PEAK_RATE = 1.5e-3
WARM_UP = 0.03  # share of the steps
WEIGHT_DECAY = 0.01
CLIP_NORM = 1.0
TAG_WEIGHT, LATE_TAG_WEIGHT = 0.5, 2.0  # early the text needs all attention, late emotion and music need more
MIDDLE_WEIGHT = 0.3
FLAT_STEPS, FLAT_FADE = 350, 500  # plain CTC sits on a plateau for long; a guessed alignment takes it off
LATE = 0.66  # share of the steps after which long joined utterances are mixed in
REPORT_EVERY, SAVE_EVERY = 50, 300
CMVN_CLIPS = 4000


@dataclass(frozen=True, slots=True)
class Settings:
    """One run: where the corpus is, where the model goes, for how long."""

    work: Path
    out: Path
    steps: int
    seed: int
    workers: int  # processes of one thread that share each step: on a busy machine far quicker than threads
    resume: bool


def measure_cmvn(work: Path) -> None:
    """Write work/am.mvn: mean and deviation of each mel, repeated for the seven stacked frames."""
    total, squares, count = np.zeros(MELS), np.zeros(MELS), 0
    for i, item in enumerate(read(work, "train")):
        if i == CMVN_CLIPS:
            break
        x = item.fbank.astype(np.float64)
        total, squares, count = total + x.sum(0), squares + (x**2).sum(0), count + len(x)
    mean = total / count
    std = np.sqrt(squares / count - mean**2)
    write_cmvn(work / "am.mvn", np.tile(mean, 7).astype(np.float32), np.tile(std, 7).astype(np.float32))


def losses(
    model: DemoSenseVoice, batch: Batch, flat_share: float, tag_weight: float
) -> tuple[Tensor, dict[str, float]]:
    """The training loss of a batch and its parts (nats a token for text, nats a frame for tags)."""
    lengths, target_lengths = torch.from_numpy(batch.lengths), torch.from_numpy(batch.target_lengths)
    targets, tags = torch.from_numpy(batch.targets), torch.from_numpy(batch.tags)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        x = torch.from_numpy(batch.x).bfloat16()
        out, middle = model(x, lengths, torch.from_numpy(batch.language), torch.from_numpy(batch.itn))
    tag_loss = F.cross_entropy(out[:, :TAG_FRAMES].float().flatten(0, 1), tags.flatten())
    tokens = max(1, int(target_lengths.sum()))

    def text_loss(logits: Tensor) -> Tensor:
        loss = torch.zeros(())
        scores = logits[:, TAG_FRAMES:].float().log_softmax(-1)
        if flat_share < 1.0:
            ctc = F.ctc_loss(
                scores.transpose(0, 1), targets, lengths, target_lengths, reduction="sum", zero_infinity=True
            )
            loss = loss + (1 - flat_share) * ctc / tokens
        if flat_share > 0.0:
            guess = torch.from_numpy(batch.flat)
            loss = loss + flat_share * F.nll_loss(scores.flatten(0, 1), guess.flatten(), ignore_index=-1)
        return loss

    text, middle_text = text_loss(out), text_loss(middle)
    loss = text + tag_weight * tag_loss + MIDDLE_WEIGHT * middle_text
    return loss, {"text": text.item(), "middle": middle_text.item(), "tags": tag_loss.item()}


def rate(step: int, steps: int) -> float:
    """Learning rate: linear warm-up, then a cosine to nearly zero."""
    warm = WARM_UP * steps
    if step < warm:
        return PEAK_RATE * (step + 1) / warm
    return PEAK_RATE * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / (steps - warm))))


def development_score(model: DemoSenseVoice, work: Path) -> str:
    """Recognise the development clips (other voices, unseen combinations) with ITN on every second one."""
    recogniser = TrainedModel(model, work)
    shift, scale = read_cmvn(work / "am.mvn")
    items = list(read(work, "development"))
    score = Score()
    for with_itn in (False, True):
        chosen = items[int(with_itn) :: 2]
        features = [(stack(item.fbank.astype(np.float32)) + shift) * scale for item in chosen]
        for item, result in zip(chosen, recogniser.recognise(features, "auto", itn=with_itn), strict=True):
            text = item.with_itn if with_itn else item.without_itn
            score.add(Truth(item.language, item.emotion, item.event, text, with_itn), result)
    return score.line()


def report(message: str) -> None:
    """One line of progress, at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {message}\n")
    sys.stdout.flush()


def train(settings: Settings) -> None:
    """Train from scratch (or on from the last state) and leave the model in settings.out."""
    settings.out.mkdir(parents=True, exist_ok=True)
    if not (settings.work / "am.mvn").exists():
        measure_cmvn(settings.work)
    (settings.out / "am.mvn").write_bytes((settings.work / "am.mvn").read_bytes())
    write(settings.out)
    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    with tempfile.TemporaryDirectory() as meeting:
        torch.multiprocessing.spawn(_worker, (settings, Path(meeting) / "store"), settings.workers)


def _share_gradients(model: DemoSenseVoice, workers: int) -> None:
    """Average the gradients of all workers, in place."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
        gradient.copy_(part.view_as(gradient) / workers)


def _worker(number: int, settings: Settings, store: Path) -> None:
    """One of the training processes; all hold the same weights, each sees batches of its own."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=number, world_size=settings.workers)
    torch.manual_seed(settings.seed)
    model = DemoSenseVoice(len(vocabulary()))
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98), weight_decay=WEIGHT_DECAY, fused=True
    )
    state_file = settings.work / "state.pt"
    first = 0
    if settings.resume:
        state = torch.load(state_file)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        first = state["step"]
    torch.manual_seed(settings.seed + 1000 * number + first)
    chief = number == 0
    seed = settings.seed + 1000 * number
    plan = Plan(
        settings.steps,
        first,
        FLAT_STEPS + FLAT_FADE,
        int(LATE * settings.steps),
        seed,
        settings.workers,
    )
    if chief:
        size = sum(p.numel() for p in model.parameters())
        report(f"{size} parameters, {len(vocabulary())} pieces, steps {first}-{settings.steps}")
    started, frames, sums = time.monotonic(), 0, dict.fromkeys(("text", "middle", "tags"), 0.0)
    model.train()
    for step, batch in enumerate(feed(settings.work, plan), first):
        if step >= settings.steps:
            break
        for group in optimizer.param_groups:
            group["lr"] = rate(step, settings.steps)
        flat_share = min(1.0, max(0.0, 1 - (step - FLAT_STEPS) / FLAT_FADE))
        tag_weight = TAG_WEIGHT if step < plan.joined_from else LATE_TAG_WEIGHT
        loss, parts = losses(model, batch, flat_share, tag_weight)
        optimizer.zero_grad(set_to_none=False)
        loss.backward()
        _share_gradients(model, settings.workers)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        if not chief:
            continue
        frames += int(batch.lengths.sum()) * settings.workers
        sums = {name: value + parts[name] for name, value in sums.items()}
        if (step + 1) % REPORT_EVERY == 0:
            spent = time.monotonic() - started
            left = spent / (step + 1 - first) * (settings.steps - step - 1)
            shown = " ".join(f"{name} {value / REPORT_EVERY:.3f}" for name, value in sums.items())
            report(f"step {step + 1} {shown} | {frames / spent:.0f} frames/s, {left / 60:.1f} min left")
            sums = dict.fromkeys(sums, 0.0)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == settings.steps:
            torch.save(
                {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step + 1},
                state_file,
            )
            save(model, settings.out, Shape())
            report("development: " + development_score(model, settings.work))
            model.train()
    dist.barrier()
    dist.destroy_process_group()
