"""The training loop (paper section 4.1)."""

import contextlib
import functools
import signal
import time
from collections.abc import Callable, Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.distributed.tensor import DTensor

from lpd.files import printable, write_json
from lpd.launcher import launcher_is_gone
from lpd.models.layers import Attend
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility, training_attention
from lpd.orders.group_sizes import GroupSizes
from lpd.pretrained import fit_pos_embed
from lpd.randomness import Stream, torch_seed
from lpd.training.averaging import WeightAverage
from lpd.training.batch import Batch, Prefetcher
from lpd.training.checkpoint import (
    CheckpointFolder,
    ModelState,
    OptimizerState,
    Progress,
    Weights,
    load_checkpoint,
)
from lpd.training.logging import TrainingLog
from lpd.training.loss import token_loss
from lpd.training.optim import FiniteGuard, make_optimizer, set_lr
from lpd.training.parallelize import STRATEGIES
from lpd.training.setup import TRAINING_NAME, TrainingSetup
from lpd.weights import find_config, load_state_dict_file, load_strictly, save_weights

# How often the processes ask each other whether one was told to stop.
_STOP_CHECK_STEPS = 8
# A second Ctrl-C this long after the first is meant; one before may be the first, passed on twice.
_IMPATIENCE_SECONDS = 2.0


class Trainer:
    """A training in progress, in one of its processes."""

    model_class: type[LPD] = LPD
    """What is trained; a baseline is another one."""

    def __init__(self, setup: TrainingSetup, warn: Callable[[str], None] = print) -> None:
        """Make the model and optimizer, from the newest whole checkpoint where there is one.

        Args:
            setup: what the training is about.
            warn: is told, on rank 0, of damaged checkpoints that are passed over.

        Raises:
            InputError: the weights to start from or the checkpoint does not fit.
        """
        self.setup = setup
        self.config = config = setup.config
        self.world = world = setup.world
        self.source = setup.source
        self.total_steps = setup.lr_schedule.total_steps
        self.checkpoints = CheckpointFolder(
            setup.checkpoints, world, keep_last=config.keep_last, is_kept=self._is_kept
        )
        found = self.checkpoints.newest(warn)
        self.changes = setup.changes(found[1].fingerprint, found[0]) if found else []
        self.model = self._make_model(setup.model_config, resumes=found is not None)
        self.strategy = STRATEGIES[config.parallel] if world.size > 1 else None
        self.parallel_model: nn.Module = self.model
        if self.strategy is not None:
            self.parallel_model = self.strategy.wrap(self.model, world, bf16=config.bf16)
        # Of the parallel model: a strategy may have put other parameters in place of the model's.
        self.optimizer = make_optimizer(self.parallel_model, config.weight_decay)
        self.guard = FiniteGuard(self.optimizer, world.device, most_in_a_row=config.max_bad_steps)
        self.parts: dict[str, Stateful] = {
            "model": ModelState(self.parallel_model),
            "optimizer": OptimizerState(self.parallel_model, self.optimizer),
            "guard": self.guard,
        }
        self.average = None
        if config.ema_decay is not None:
            self.average = WeightAverage(self.model, config.ema_decay)
            self.parts["ema"] = self.average
        self.attention = {sizes: self._make_attention(sizes) for sizes in setup.schedules}
        self.step = 0
        self.saved_step = -1
        if found is not None:
            path, progress = found
            load_checkpoint(path, self.parts, world)
            self.step = self.saved_step = progress.step

    def summary(self) -> str:
        """What is trained on what, in a few lines."""
        source, shape = self.source, self.model.config
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        return (
            f"{self.config.model}: {millions:.3f} M parameters, "
            f"{shape.num_positions} codes of {shape.vocab_size}, {shape.num_classes} classes\n"
            f"{len(self.setup.cache.readable)} images, global batch {source.global_batch_size} on "
            f"{self.world.size} x {self.world.device.type}, "
            f"{source.steps_per_epoch} steps an epoch, {self.total_steps} in all; "
            f"from step {self.step}, lr {self.setup.lr_schedule.lr:.3g}"
        )

    def reservation(self) -> str:
        """What a user should know who hears that the training is complete; mostly nothing."""
        skipped = self.guard.skipped()
        if not skipped:
            return ""
        return f" ({skipped} of {self.step} steps were skipped: their gradient was not finite)"

    def train(self) -> bool:
        """Train to the end, or until told to stop.

        Returns:
            Whether the training is complete; if not, its state was saved.

        Raises:
            InputError: another run has gone on with this training, too many gradients in a row
                were not finite, or a checkpoint could not be written; raised in all processes
                alike. Bad steps changed no weights.
        """
        config, world = self.config, self.world
        self.checkpoints.check_unchanged()
        self.parallel_model.train()
        with (
            TrainingLog(
                config.output_dir,
                start_step=self.step,
                total_steps=self.total_steps,
                world=world,
            ) as log,
            Prefetcher(self.source) as batches,
            _stop_flag() as told_to_stop,
        ):
            if self.changes:
                log.note(self.step, changed=self.changes)
            while self.step < self.total_steps:
                batch = batches.batch(self.step)
                loss, grad_norm = self.train_step(batch)
                self.step += 1
                log.advance()
                if self.step % config.log_freq == 0 or self.step in {1, self.total_steps}:
                    self._check_gradients()
                    metrics = {
                        "loss": world.mean(loss).item(),
                        "grad_norm": grad_norm.item(),
                        "lr": self.setup.lr_schedule.at(self.step - 1),
                        "epoch": self.step / self.source.steps_per_epoch,
                    }
                    skipped = self.guard.skipped()
                    if skipped:
                        metrics["skipped_steps"] = skipped
                    log.report(self.step, metrics)
                if self.step % _STOP_CHECK_STEPS == 0 and world.any(
                    told_to_stop() or self.checkpoints.failed
                ):
                    self._save()
                    self.checkpoints.wait()
                    return False
                if self._is_save_step():
                    self._save()
            self._save()
            self.checkpoints.wait()
            self._export()
        return True

    def train_step(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """One optimizer step. The host does not wait for the device.

        Returns:
            This process's loss and the norm of the averaged gradient, on the device.
        """
        config, device = self.config, self.world.device
        # Dropout alone reads torch's global generator.
        torch.manual_seed(torch_seed(Stream.DROPOUT, config.seed, self.step, self.world.rank))
        set_lr(self.optimizer, self.setup.lr_schedule.at(self.step))
        self.optimizer.zero_grad(set_to_none=False)  # the memory is kept
        count = config.accumulation_steps
        losses = []
        for number, part in enumerate(batch.split(count), start=1):
            with self._adding_up(last=number == count):
                with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
                    loss = self._loss(part) / count
                loss.backward()
            losses.append(loss.detach())
        loss = torch.stack(losses).sum()
        grad_norm = nn.utils.clip_grad_norm_(self.parallel_model.parameters(), config.grad_clip)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        self.guard.watch(loss, grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        return loss, grad_norm

    def _adding_up(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        if self.strategy is None:
            return contextlib.nullcontext()
        return self.strategy.adding_up(self.parallel_model, last=last)

    def _loss(self, batch: Batch) -> Tensor:
        targets = batch.tokens.gather(1, batch.orders)  # (B, N)
        return self.parallel_model(
            batch.tokens,
            batch.condition,
            batch.orders,
            self.attention[batch.group_sizes],
            functools.partial(token_loss, targets=targets, chunked=self.config.chunked_loss),
        )

    def _check_gradients(self) -> None:
        self.guard.check(self.step, self.world, self._describe)

    def _describe(self, step: int) -> str:
        """What a step, from 0, was about, for a message."""
        rows = self.source.rows(step)
        names = [printable(self.setup.cache.files[row]) for row in rows[:3]]
        more = f" and {len(rows) - 3} more" if len(rows) > 3 else ""
        return f"{len(self.source.group_sizes(step))} passes, images {', '.join(names)}{more}"

    def _make_model(self, shape: LPDConfig, *, resumes: bool) -> LPD:
        torch.manual_seed(torch_seed(Stream.WEIGHTS, self.config.seed))
        model = self.model_class(shape)
        model.init_weights()
        path = self.config.pretrained_ckpt
        if path is not None and not resumes:  # a checkpoint has its own
            before = find_config(path, LPDConfig)
            if before is not None and before.tokenizer_sha256 is not None:
                self.setup.cache.check(tokenizer_sha256=before.tokenizer_sha256)
            state = fit_pos_embed(load_state_dict_file(path), shape)
            load_strictly(model, state, str(path))
        model.checkpoint_every = self.config.recompute_every
        model.to(self.world.device)
        if self.config.compile:
            for block in model.blocks:
                block.compile()
        return model

    def _make_attention(self, group_sizes: GroupSizes) -> Attend:
        num_prefix = self.model.conditioning.num_rows
        attend = training_attention(
            Visibility.of_group_sizes(group_sizes, self.world.device, num_prefix)
        )
        # Compiled with a block, it would have the block compiled anew for every schedule: a mask's
        # function is a constant to the compiler.
        return torch.compiler.disable(attend, recursive=False) if self.config.compile else attend

    def _is_save_step(self) -> bool:
        epoch, rest = divmod(self.step, self.source.steps_per_epoch)
        return rest == 0 and (epoch % self.config.save_last_freq == 0 or self._is_kept(self.step))

    def _is_kept(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good."""
        kept_every = self.config.save_intermediate_freq * self.source.steps_per_epoch
        return step > 0 and step % kept_every == 0

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        self._check_gradients()
        progress = Progress(self.step, self.setup.fingerprint)
        self.checkpoints.save(progress, self.parts, self._weights())
        self.saved_step = self.step

    def _weights(self) -> dict[str, Weights]:
        """What evaluation and later trainings load, by folder; the weights are on rank 0."""
        shape = self.model.config
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state = get_model_state_dict(self.parallel_model, options=whole)
        weights = {self.setup.exported_model.name: Weights(cast(dict[str, Tensor], state), shape)}
        if self.average is not None:
            average = {name: _whole(each) for name, each in self.average.weights.items()}
            if not self.world.is_main:
                average = {}
            weights[self.setup.exported_average.name] = Weights(average, shape)
        return weights

    def _export(self) -> None:
        with self.world.together():
            weights = self._weights()
            if self.world.is_main:
                write_json(
                    self.setup.exported_model / TRAINING_NAME,
                    {"steps": self.step, "fingerprint": self.setup.fingerprint},
                )
                # The model comes last: with its weights the training is complete.
                for name in sorted(weights, reverse=True):
                    each = weights[name]
                    save_weights(self.config.output_dir / name, each.state, each.config)


def _whole(tensor: Tensor) -> Tensor:
    """A tensor on the host; of a sharded one all shares, which all processes ask for together."""
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).cpu()


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Turn what asks a process to stop into a flag that is read between steps.

    That is Ctrl-C, SIGTERM, SIGUSR1 (Slurm's warning before the time is up) and SIGHUP, where nohup
    is not in force. SIGTERM may come twice, from the scheduler and from torchrun, and never does
    more. A second Ctrl-C, a while after the first, interrupts at once. A torchrun that was killed
    could not even ask.
    """
    asked_at: list[float] = []

    def handle(signum: int, _frame: object) -> None:
        asked_at.append(time.monotonic())
        if signum == signal.SIGINT and asked_at[-1] - asked_at[0] > _IMPATIENCE_SECONDS:
            raise KeyboardInterrupt

    previous = {
        name: signal.signal(name, handle)
        for name in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
        if signal.getsignal(name) is not signal.SIG_IGN
    }
    try:
        yield lambda: bool(asked_at) or launcher_is_gone()
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
