# SPDX-License-Identifier: Apache-2.0
"""The trainer: one training step as a table of contents, and the loop around it.

    prompts -> rollout -------------------> old and ref log-probs -> reward -> advantage -> update -> weight sync
                  \\-> rule and PRM scores, response by response ----/

Scores start when a response ends and are joined in the reward stage; with `trainer.max_staleness` the rollouts of the
next steps run beside all of it (`rollout_ahead`). Nothing else is concurrent. The trainer talks to worker groups and
servers; it knows no engine. New behaviour belongs inside a stage, not into the loop.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from verl.config import PPOTrainerConfig
from verl.protocol import DataProto
from verl.rewards.alarms import AlarmBoard, alarm_rules
from verl.rewards.loop import ScoredBatch
from verl.rollout.base import SamplingSettings
from verl.rollout.to_batch import to_batch
from verl.trainer.ppo.advantage import apply_kl_penalty, compute_advantage, compute_response_mask
from verl.trainer.ppo.checkpointing import CheckpointFolders, read_trainer_state, write_trainer_state
from verl.trainer.ppo.metric_utils import compute_data_metrics, compute_entropy_metrics, compute_throughput_metrics
from verl.trainer.ppo.placement import ResourcePoolManager, Role
from verl.trainer.ppo.prompts import group_requests, prompt_batch
from verl.trainer.ppo.reward_stage import RewardStage, responses_of, without_rows
from verl.trainer.ppo.rollout_ahead import AheadSettings, RolloutAhead
from verl.trainer.ppo.rollout_correction import RolloutCorrection
from verl.trainer.ppo.rollout_dump import dump_rollouts
from verl.trainer.ppo.rollout_stage import RolloutStage
from verl.trainer.ppo.runtime import Runtime
from verl.trainer.ppo.skipped_steps import SkippedSteps
from verl.trainer.ppo.sync_proof import check_proof, compare_log_probs, sync_metrics
from verl.trainer.ppo.validation import Validator
from verl.utils.garbage import StepwiseGarbage
from verl.utils.timing import StageTimer
from verl.utils.tracking import Tracker
from verl.weight_sync.base import WeightSyncFailedError

__all__ = [
    "RayPPOTrainer",
    "ResourcePoolManager",
    "Role",
    "apply_kl_penalty",
    "compute_advantage",
    "compute_response_mask",
]

logger = logging.getLogger(__name__)

_PROOF_TOKENS = 32


class RayPPOTrainer:
    """Trains a policy with the workers of a `Runtime`.

    Example:
        >>> trainer = RayPPOTrainer(config, runtime, train_loader, val_loader, tracker)
        >>> trainer.fit()
    """

    def __init__(
        self, config: PPOTrainerConfig, runtime: Runtime, train_loader: Any, val_loader: Any, tracker: Tracker
    ) -> None:
        """Remember the parts.

        Args:
            config: The run's configuration.
            runtime: Started workers and servers.
            train_loader: Endless epochs of prompt rows, with `state_dict`.
            val_loader: Held-out prompt rows; None for no validation.
            tracker: Where metrics go.
        """
        self.config, self.runtime, self.tracker = config, runtime, tracker
        self.train_loader, self.val_loader = train_loader, val_loader
        self.total_steps = runtime.total_training_steps
        self.global_steps = 0
        self.policy_version = 0
        self.timer = StageTimer()
        self.folders = CheckpointFolders(config.trainer)
        self.validator = Validator(config, runtime.loop, runtime.stream, runtime.reward_loop)
        ahead = AheadSettings(
            config.trainer.max_staleness,
            self.total_steps,
            config.actor_rollout_ref.rollout.in_flight_update == "keep",
        )
        stage = RolloutStage(config, runtime)
        self.rollouts = RolloutAhead(stage, runtime.stream, runtime.loop, train_loader, ahead)
        self.correction = RolloutCorrection(config.algorithm.rollout_correction, config.needs_old_log_probs)
        self.reward_stage = RewardStage(config)
        self.skipped_steps = SkippedSteps(config.trainer.max_skipped_steps)
        self.alarms = AlarmBoard(alarm_rules(config.reward_model.alarms, config.reward_model.process_reward.mode))

    # ---- the loop ----

    def fit(self) -> dict[str, float]:
        """Train to the last step: resume, prove the weight sync, validate, step, save.

        Returns:
            The metrics of the last validation, empty without validation.
        """
        trainer = self.config.trainer
        self.runtime.sleep_servers()  # the ranks load a checkpoint, and all weights change anyway
        self.runtime.loop.run(self.runtime.sleep_scorers())
        self._resume()
        self._sync_weights(verify=True)
        self._prove_weight_sync()
        last_val = self._validate_and_track() if trainer.val_before_train else {}
        if trainer.val_only:
            return last_val
        try:
            with StepwiseGarbage() as garbage:
                while self.global_steps < self.total_steps:
                    last_val = self._step_and_what_follows() or last_val
                    garbage.collect()
        finally:
            self.rollouts.cancel()
        if trainer.export_hf:
            self.runtime.actor.export_hf(str(self.hf_dir))
        return last_val

    def train_step(self) -> dict[str, float]:
        """One training step.

        Returns:
            Metrics.
        """
        self.global_steps += 1
        self.timer = timer = StageTimer()
        with timer("step"):
            with timer("gen"):
                batch, scoring, metrics = self.rollouts.take(self.global_steps, self.policy_version)
            with timer("old_log_prob"):
                batch = batch.union(self.correction.old_log_probs(batch, self.runtime.actor))
            with timer("ref"):
                batch = batch.union(self._reference_log_probs(batch))
            with timer("reward"):
                with timer("wait_for_scores"):
                    scores = scoring.result()
                batch = batch.union(self.reward_stage.score_columns(batch, scores, self.global_steps))
                rewards, placed = self.reward_stage.place(batch, self.global_steps)
                batch, metrics = batch.union(rewards), metrics | placed
            with timer("adv"):
                beta = self.reward_stage.beta(self.global_steps)
                batch = batch.union(compute_advantage(batch, self.config.algorithm, beta))
            with timer("update_actor"):
                used = without_rows(batch, ~batch.batch["is_kept"])
                metrics |= self.runtime.actor.update_actor(used, self.global_steps)[0]
            with timer("update_weights"):
                metrics |= self._sync_weights(verify=False)
        return {**metrics, **scores.metrics, **self._report(batch, scores), **self.correction.metrics(batch, metrics)}

    # ---- stages ----

    def _reference_log_probs(self, batch: DataProto) -> DataProto:
        """Stage 4's second half; no column when no KL term is on."""
        if not self.config.needs_reference:
            return DataProto.from_dict(tensors={}, non_tensors={})
        return self.runtime.actor.compute_ref_log_prob(batch)

    def _sync_weights(self, verify: bool) -> dict[str, float]:
        """Stage 8: the rollout servers get the new weights, once the responses in flight are complete or frozen."""
        self.policy_version += 1
        verify = verify or _is_due(self.policy_version, self.config.actor_rollout_ref.rollout.weight_sync_verify_every)
        self.runtime.wake_servers(for_update=True)
        with self.timer("wait_for_in_flight"):
            self.rollouts.hold()
        try:
            reports = self.runtime.actor.sync_weights(self.policy_version, verify)
        except WeightSyncFailedError as error:  # the cause is the rank's error without Ray's remote traceback
            what = getattr(error, "cause", None) or error
            raise WeightSyncFailedError(f"{what}. {self.folders.restart_hint()}") from error
        self.runtime.wake_servers()
        self.rollouts.resume()
        return sync_metrics(reports)

    # ---- around the step ----

    def _step_and_what_follows(self) -> dict[str, float]:
        """A training step, then validation, checkpoint and alarms where due; gives the validation's metrics if any."""
        trainer, val_metrics = self.config.trainer, {}
        metrics = self.train_step()
        alarms = self.alarms.check(self.global_steps, metrics)
        metrics |= self.alarms.metrics() | self.skipped_steps.count(metrics)
        is_last = self.global_steps == self.total_steps
        if self.val_loader is not None and (is_last or _is_due(self.global_steps, trainer.test_freq)):
            val_metrics = self._validate()
        if (is_last and trainer.save_freq != 0) or _is_due(self.global_steps, trainer.save_freq):
            metrics |= self._save()
        self.tracker.write(self.global_steps, metrics | val_metrics)
        self.alarms.raise_for(alarms)
        self.skipped_steps.raise_if_stuck()
        return val_metrics

    def _prove_weight_sync(self) -> None:
        """Compare log-probs of servers and trainer on a few short responses from every server; raises on a mismatch."""
        runtime, rollout = self.runtime, self.config.actor_rollout_ref.rollout
        rows = self.train_loader.dataset[0]
        num_groups = len(runtime.servers) * runtime.actor.dp_size
        prompts = prompt_batch(
            {key: [value] * num_groups for key, value in rows.items()}, "proof", runtime.pad_token_id
        )
        sampling = SamplingSettings(
            temperature=rollout.temperature, max_new_tokens=min(_PROOF_TOKENS, self.config.data.max_response_length)
        )
        requests = group_requests(prompts, 4, sampling)
        outputs = runtime.loop.run(runtime.stream.generate(requests, lambda output: None))
        batch = to_batch(prompts, outputs, runtime.pad_token_id)
        batch = batch.union(runtime.actor.compute_log_prob(batch))
        proof = compare_log_probs(batch)
        dtypes = {rollout.dtype, self.config.actor_rollout_ref.actor.compute_dtype}
        check_proof(proof, is_float32=dtypes == {"float32"})
        logger.info(
            "weight sync proved: log-probs of %d tokens differ by at most %.2g nats (mean %.2g) between trainer and "
            "rollout engine",
            proof.num_tokens,
            proof.max_difference,
            proof.mean_difference,
        )

    def _validate(self) -> dict[str, float]:
        timer = StageTimer()
        with timer("testing"):
            metrics = self.validator.run(self.val_loader, self.global_steps, self.runtime.pad_token_id)
        return metrics | timer.as_metrics()

    def _validate_and_track(self) -> dict[str, float]:
        if self.val_loader is None:
            return {}
        metrics = self._validate()
        self.tracker.write(self.global_steps, metrics)
        return metrics

    def _report(self, batch: DataProto, scores: ScoredBatch) -> dict[str, float]:
        """Metrics of the batch and of time, and the dump."""
        folder = self.config.trainer.rollout_data_dir
        if folder:
            dump_rollouts(Path(folder).expanduser(), self.global_steps, batch, responses_of(batch, scores))
        step_s = self.timer.seconds["step"]
        return {
            **compute_data_metrics(batch, self.config.data.max_response_length),
            **compute_entropy_metrics(batch),
            **compute_throughput_metrics(batch, step_s, self.runtime.num_devices),
            **self.timer.as_metrics(),
            "reward/exposed/share": self.timer.seconds["wait_for_scores"] / step_s,
            "rollout/exposed/share": (self.timer.seconds["gen"] + self.timer.seconds["wait_for_in_flight"]) / step_s,
            "trainer/policy_version": float(self.policy_version),
        }

    @property
    def hf_dir(self) -> Path:
        """Where the policy is exported in HF format."""
        return (Path(self.config.trainer.run_dir).expanduser() / "hf").absolute()

    def _save(self) -> dict[str, float]:
        timer = StageTimer()
        with timer("save_checkpoint"):
            folder = self.folders.begin(self.global_steps)
            self.runtime.actor.save_checkpoint(str(folder))
            state = {
                "global_steps": self.global_steps,
                "policy_version": self.policy_version,
                "kl_coef": self.reward_stage.kl_controller.value,
                "alarms": self.alarms.state_dict(),
            }
            write_trainer_state(folder, state, self.rollouts.data_state())
            logger.info("checkpoint written: %s", self.folders.commit(self.global_steps))
        return timer.as_metrics()

    def _resume(self) -> None:
        folder = self.folders.to_resume()
        if folder is None:
            return
        state, data_state = read_trainer_state(folder)
        self.global_steps = int(state["global_steps"])
        self.policy_version = int(state["policy_version"])
        self.reward_stage.kl_controller.value = float(state["kl_coef"])
        self.alarms.load_state_dict(state["alarms"])
        self.train_loader.load_state_dict(data_state)
        self.runtime.actor.load_checkpoint(str(folder))
        logger.info("resumed from %s at training step %d", folder, self.global_steps)


def _is_due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
