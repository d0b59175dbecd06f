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

from lpd.errors import InputError
from lpd.files import printable, write_json
from lpd.launcher import launcher_is_gone
from lpd.models.layers import Attend, RaggedAttend
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.text_encoder import check_encoder, identity_in
from lpd.models.visibility import Visibility, training_attention
from lpd.orders.group_sizes import GroupSizes
from lpd.pretrained import fit_conditioning, fit_pos_embed
from lpd.randomness import Stream, torch_seed
from lpd.training.averaging import WeightAverage
from lpd.training.batch import Batch, Prefetcher
from lpd.training.checkpoint import (
    CheckpointFolder,
    ModelState,
    OptimizerState,
    Progress,
    Weights,
)
from lpd.training.clock import BACKWARD, DATA, FORWARD, OPTIMIZER, StepClock
from lpd.training.logging import TrainingLog
from lpd.training.loss import token_loss
from lpd.training.measuring import Measuring
from lpd.training.optim import FiniteGuard, make_optimizer, set_lr
from lpd.training.parallelize import STRATEGIES
from lpd.training.setup import TRAINING_NAME, TrainingSetup
from lpd.training.state_files import read_state
from lpd.training.throughput import flops_per_image, peak_flops, take_peak_memory
from lpd.training.variants import Variant
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
        self.clock = StepClock(world.device)
        self.attention = {sizes: self._make_attention(sizes) for sizes in setup.schedules}
        self.flops_per_image = flops_per_image(self.model, setup.schedules)
        self.step = 0
        self.saved_step = -1
        if found is not None:
            path, progress = found
            younger = read_state(path, self.parts, world)
            if self.average is not None and "ema" in younger:
                self.average.restart()  # from the weights that were loaded
            self.step = progress.step
            # What the checkpoint lacks is to be saved as well, if it is needed.
            self.saved_step = -1 if younger else progress.step
        self.told_step = self.step
        self.variants = self._make_variants()
        self.measuring = Measuring(
            setup, self.variants, self.model, self.parallel_model, self.checkpoints
        )

    def summary(self) -> str:
        """What is trained on what, in a few lines."""
        source, shape = self.source, self.model.config
        millions = sum(p.numel() for p in self.model.parameters()) / 1e6
        conditions = filter(None, (self.model.conditioning.told, self.setup.conditions.told))
        return (
            f"{self.config.model}: {millions:.3f} M parameters, "
            f"{shape.num_positions} codes of {shape.vocab_size}, {', '.join(conditions)}\n"
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
        self.checkpoints.remove_leftovers(self.step)
        self.measuring.forget_after(self.step)
        self.parallel_model.train()
        with (
            TrainingLog(
                config.output_dir,
                start_step=self.step,
                total_steps=self.total_steps,
                world=world,
                wandb=config.wandb,
            ) as log,
            Prefetcher(self.source) as batches,
            _stop_flag() as told_to_stop,
            self.checkpoints.finished_on_error(),
        ):
            if self.changes:
                log.note(self.step, changed=self.changes)
            self._measure(log)  # what a run that was killed left undone
            save_is_due = False
            self.clock.lap(None)
            while self.step < self.total_steps:
                batch = batches.batch(self.step)
                self.clock.lap(DATA)
                loss, grad_norm = self.train_step(batch)
                self.step += 1
                log.advance()
                if self.step % config.log_freq == 0 or self.step in {1, self.total_steps}:
                    self._check_gradients()
                    self._note_skipped(log)
                    log.report(self.step, self._metrics(loss, grad_norm))
                    self.clock.lap(None)
                if self.step % _STOP_CHECK_STEPS == 0 and world.any(
                    told_to_stop() or self.checkpoints.failed
                ):
                    self._save()
                    self.checkpoints.wait()
                    return False
                save_is_due = save_is_due or self._is_save_step()
                if save_is_due or self.measuring.is_due(self.step):
                    save_is_due = save_is_due and not self._save()
                    self._measure(log)
                    self.clock.lap(None)
            self._check_gradients(most_in_a_row=1)
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
                self.clock.lap(FORWARD)
                loss.backward()
                self.clock.lap(BACKWARD)
            losses.append(loss.detach())
        loss = torch.stack(losses).sum()
        grad_norm = nn.utils.clip_grad_norm_(self.parallel_model.parameters(), config.grad_clip)
        if isinstance(grad_norm, DTensor):
            grad_norm = grad_norm.full_tensor()
        self.guard.watch(self.step + 1, loss, grad_norm)
        self.optimizer.step()
        if self.average is not None:
            self.average.update()
        self.clock.lap(OPTIMIZER)
        return loss, grad_norm

    def _metrics(self, loss: Tensor, grad_norm: Tensor) -> dict[str, float]:
        """What is known of the last step, and how fast those since the last time were."""
        metrics = {
            "loss": self.world.mean(loss).item(),
            "grad_norm": grad_norm.item(),
            "lr": self.setup.lr_schedule.at(self.step - 1),
            "epoch": self.step / self.source.steps_per_epoch,
        }
        skipped = self.guard.skipped()
        if skipped:
            metrics["skipped_steps"] = skipped
        steps, self.told_step = self.step - self.told_step, self.step
        parts = self.clock.read()
        seconds = sum(parts.values())
        if seconds:  # of no step where this one was told before
            metrics["seconds_per_step"] = seconds / steps
            metrics |= {f"share_{name}": each / seconds for name, each in parts.items()}
            metrics["images_per_second"] = steps * self.source.global_batch_size / seconds
            peak = peak_flops(self.world.device)
            if peak is not None and self.config.bf16:
                per_process = metrics["images_per_second"] / self.world.size
                metrics["mfu"] = self.flops_per_image * per_process / peak
        memory = take_peak_memory(self.world.device)
        if memory is not None:
            metrics["memory_gib"] = memory / 2**30
        return metrics

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

    def _check_gradients(self, most_in_a_row: int | None = None) -> None:
        self.guard.check(
            self.world,
            self._describe,
            remedy="the same command goes on from the last checkpoint, with --allow_change lr at a "
            "lower --lr; if that was saved too late, remove the newest one in "
            f"{self.checkpoints.folder}",
            most_in_a_row=most_in_a_row,
        )

    def _note_skipped(self, log: TrainingLog) -> None:
        """Write down which steps were skipped, and what they were about."""
        for step in self.guard.newly_skipped():
            log.note(
                self.step,
                skipped_step=step,
                group_sizes=self.source.group_sizes(step - 1),
                rows=self.source.rows(step - 1).tolist(),
            )

    def _describe(self, step: int) -> str:
        """What a step, counted from 1 as in the log, was about."""
        step -= 1
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
            own = identity_in(shape)
            if own is not None and before is not None and identity_in(before) is not None:
                check_encoder(before, own, max_length=shape.text_length, place=str(path))
                if shape.text_length < before.text_length:  # each token has a learned position
                    raise InputError(
                        f"the model {path} reads texts of up to {before.text_length} tokens, not "
                        f"{shape.text_length}: give --text_length {before.text_length}, to the "
                        "caching of features too"
                    )
            state = fit_pos_embed(load_state_dict_file(path), shape)
            load_strictly(model, fit_conditioning(state, model), str(path))
        model.checkpoint_every = self.config.recompute_every
        model.to(self.world.device)
        if self.config.compile:
            for block in model.blocks:
                block.compile()
        return model

    def _make_attention(self, group_sizes: GroupSizes) -> Attend | RaggedAttend:
        conditioning = self.model.conditioning
        visibility = Visibility.of_group_sizes(
            group_sizes, self.world.device, conditioning.num_rows, conditioning.num_ragged
        )
        # Compiled with a block, it would have the block compiled anew for every schedule: a mask's
        # function is a constant to the compiler.
        return training_attention(visibility, opaque=self.config.compile)

    def _is_save_step(self) -> bool:
        epoch, rest = divmod(self.step, self.source.steps_per_epoch)
        return rest == 0 and (epoch % self.config.save_last_freq == 0 or self._is_kept(self.step))

    def _is_kept(self, step: int) -> bool:
        """Whether the checkpoint of a step is kept for good."""
        kept_every = self.config.save_intermediate_freq * self.source.steps_per_epoch
        return step > 0 and step % kept_every == 0

    def _measure(self, log: TrainingLog) -> None:
        if self.measuring.needs_checkpoint(self.step):
            self._save()
        self.measuring.measure(self.step, log)
        take_peak_memory(self.world.device)  # of a step's, it is no part

    def _save(self) -> bool:
        """Save, unless that is done.

        Returns:
            Whether it is. In a row of bad steps nothing is saved: if it goes on, the weights were
            broken before it, and what is kept should be from before that.
        """
        if self.saved_step == self.step:
            return True
        self._check_gradients()
        if self.guard.in_a_row():
            return False
        progress = Progress(self.step, self.setup.fingerprint)
        weights = {variant.folder: variant.whole() for variant in self.variants}
        self.checkpoints.save(progress, self.parts, weights)
        self.saved_step = self.step
        return True

    def _make_variants(self) -> list[Variant]:
        """The weights, and their average where it is kept."""
        shape, average = self.model.config, self.average
        owned = self.world.device.type != "cpu"  # what is copied to the host is a copy

        def weights() -> Weights:
            whole = StateDictOptions(full_state_dict=True, cpu_offload=True)
            state = cast(
                dict[str, Tensor], get_model_state_dict(self.parallel_model, options=whole)
            )
            return Weights({k: v if owned else v.clone() for k, v in state.items()}, shape)

        variants = [Variant(suffix="", whole=weights, in_place=contextlib.nullcontext)]
        if average is not None:

            def averaged() -> Weights:
                state = {}
                for name, each in average.weights.items():
                    # All processes ask for the shares of a sharded one together.
                    whole = each.full_tensor() if isinstance(each, DTensor) else each
                    if self.world.is_main:
                        state[name] = whole.cpu() if owned else whole.clone()
                return Weights(state, shape)

            variants.append(Variant(suffix="_ema", whole=averaged, in_place=average.in_place))
        return variants

    def _export(self) -> None:
        with self.world.together():
            weights = [(variant.folder, variant.whole()) for variant in self.variants]
            if self.world.is_main:
                for name, each in weights:
                    save_weights(self.config.output_dir / name, each.state, each.config)
                # Last: with it the training is complete. There may be weights of a shorter one,
                # which must not pass for these.
                write_json(
                    self.setup.exported_model / TRAINING_NAME,
                    {"steps": self.step, "fingerprint": self.setup.fingerprint},
                )


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
