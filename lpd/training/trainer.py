"""The training loop (paper section 4.1)."""

import contextlib
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn.functional import cross_entropy

from lpd.files import write_json
from lpd.models.layers import Attend
from lpd.models.lpd import LPD, LPDConfig
from lpd.models.visibility import Visibility, training_attention
from lpd.pretrained import fit_pos_embed
from lpd.randomness import Stream, torch_seed
from lpd.training.batch import Batch, Prefetcher
from lpd.training.checkpoint import (
    ModelState,
    OptimizerState,
    Progress,
    latest_checkpoint,
    load_checkpoint,
    read_progress,
    remove_old_checkpoints,
    save_checkpoint,
)
from lpd.training.logging import TrainingLog
from lpd.training.optim import FiniteGuard, make_optimizer, set_lr
from lpd.training.parallelize import STRATEGIES
from lpd.training.setup import TRAINING_NAME, TrainingSetup
from lpd.weights import find_config, load_state_dict_file, load_strictly, save_pretrained

# How often the processes ask each other whether one was told to stop.
_STOP_CHECK_STEPS = 8
# A second Ctrl-C this long after the first is meant; one before may be the first, passed on twice.
_IMPATIENCE_SECONDS = 2.0


class Trainer:
    """A training in progress, in one of its processes."""

    def __init__(self, setup: TrainingSetup) -> None:
        """Make the model and optimizer, from the last checkpoint where there is one.

        Raises:
            InputError: the weights to start from or the checkpoint does not fit.
        """
        self.setup = setup
        self.config = setup.config
        self.world = world = setup.world
        self.source = setup.source
        self.total_steps = setup.lr_schedule.total_steps
        self.model = self._make_model(setup.model_config)
        self.parallel_model = STRATEGIES[self.config.parallel](self.model, world)
        # Of the parallel model: a strategy may have put other parameters in place of the model's.
        self.optimizer = make_optimizer(self.parallel_model, self.config.weight_decay)
        self.parts: dict[str, Stateful] = {
            "model": ModelState(self.parallel_model),
            "optimizer": OptimizerState(self.parallel_model, self.optimizer),
        }
        self.attention = {
            sizes: training_attention(
                Visibility.of_group_sizes(sizes, world.device, self.model.conditioning.num_rows)
            )
            for sizes in setup.schedules
        }
        self.step = 0
        self.saved_step = -1
        self._resume()
        self.guard = FiniteGuard(self.optimizer, world.device, self.step)

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

    def train(self) -> bool:
        """Train to the end, or until told to stop.

        Returns:
            Whether the training is complete; if not, its state was saved.

        Raises:
            InputError: a gradient was not finite; raised in all processes alike. Nothing of that
                step or later ones was logged or saved, or changed the weights.
        """
        config, world = self.config, self.world
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
            while self.step < self.total_steps:
                batch = batches.batch(self.step)
                loss, grad_norm = self.train_step(batch)
                self.step += 1
                log.advance()
                if self.step % config.log_freq == 0 or self.step in {1, self.total_steps}:
                    self.guard.check(world)
                    metrics = {
                        "loss": world.mean(loss).item(),
                        "grad_norm": grad_norm.item(),
                        "lr": self.setup.lr_schedule.at(self.step - 1),
                        "epoch": self.step / self.source.steps_per_epoch,
                    }
                    log.report(self.step, metrics)
                if self.step % _STOP_CHECK_STEPS == 0 and world.any(told_to_stop()):
                    self._save()
                    return False
                if self._is_save_step():
                    self._save()
        self._save()
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
        with torch.autocast(device.type, torch.bfloat16, enabled=config.bf16):
            loss = self._loss(batch, self.attention[batch.group_sizes])
        loss.backward()
        grad_norm = nn.utils.clip_grad_norm_(self.parallel_model.parameters(), config.grad_clip)
        self.guard.watch(loss, grad_norm)
        self.optimizer.step()
        return loss.detach(), grad_norm

    def _loss(self, batch: Batch, attend: Attend) -> Tensor:
        logits = self.parallel_model(
            batch.tokens, batch.condition, batch.orders, attend
        )  # (B, N, V)
        targets = batch.tokens.gather(1, batch.orders)  # (B, N)
        return cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def _make_model(self, shape: LPDConfig) -> LPD:
        torch.manual_seed(torch_seed(Stream.WEIGHTS, self.config.seed))
        model = LPD(shape)
        model.init_weights()
        if self.config.pretrained_ckpt is not None:
            path = self.config.pretrained_ckpt
            before = find_config(path, LPDConfig)
            if before is not None and before.tokenizer_sha256 is not None:
                self.setup.cache.check(tokenizer_sha256=before.tokenizer_sha256)
            state = fit_pos_embed(load_state_dict_file(path), shape)
            load_strictly(model, state, str(path))
        model.grad_checkpointing = self.config.grad_checkpointing
        return model.to(self.world.device)

    def _resume(self) -> None:
        checkpoint: Path | None = self.world.broadcast(latest_checkpoint(self.setup.checkpoints))
        if checkpoint is None:
            return
        progress = read_progress(checkpoint, self.world)
        self.setup.check_origin(progress.fingerprint, checkpoint)
        load_checkpoint(checkpoint, self.parts, self.world)
        self.step = self.saved_step = progress.step

    def _is_save_step(self) -> bool:
        epoch, rest = divmod(self.step, self.source.steps_per_epoch)
        return rest == 0 and (
            epoch % self.config.save_last_freq == 0
            or epoch % self.config.save_intermediate_freq == 0
        )

    def _save(self) -> None:
        if self.saved_step == self.step:
            return
        self.guard.check(self.world)
        progress = Progress(self.step, self.setup.origin.plain())
        last = save_checkpoint(self.setup.checkpoints, progress, self.parts, self.world)
        if self.world.is_main:
            kept_every = self.config.save_intermediate_freq * self.source.steps_per_epoch
            keep = {
                self.setup.checkpoints / f"step_{step:08d}"
                for step in range(kept_every, self.step + 1, kept_every)
            }
            remove_old_checkpoints(self.setup.checkpoints, keep | {last})
        self.saved_step = self.step

    def _export(self) -> None:
        whole = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on rank 0 alone
        state = get_model_state_dict(self.parallel_model, options=whole)
        if self.world.is_main:
            folder = self.setup.exported_model
            with torch.device("meta"):
                model = LPD(self.model.config)
            model.load_state_dict(state, assign=True)
            # The weights come last: with them the folder is complete.
            write_json(
                folder / TRAINING_NAME,
                {"steps": self.step, "fingerprint": self.setup.origin.plain()},
            )
            save_pretrained(folder, model, model.config)
        self.world.barrier()


@contextlib.contextmanager
def _stop_flag() -> Iterator[Callable[[], bool]]:
    """Turn SIGTERM and Ctrl-C into a flag that is read between steps.

    SIGTERM may come twice, from the scheduler and from torchrun, and never does more. A second
    Ctrl-C, a while after the first, interrupts at once.
    """
    asked_at: list[float] = []

    def handle(signum: int, _frame: object) -> None:
        asked_at.append(time.monotonic())
        if signum == signal.SIGINT and asked_at[-1] - asked_at[0] > _IMPATIENCE_SECONDS:
            raise KeyboardInterrupt

    previous = {name: signal.signal(name, handle) for name in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield lambda: bool(asked_at)
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
