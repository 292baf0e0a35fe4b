"""The lease files of this host as answers to a claim: its tokens are on disk before Redis is asked.

The promise of this file: whatever ends a claim (Ctrl-C, `kill -9`, a full disk, another claim for the same worker at
the same moment) leaves either nothing, or a lease that the next claim of this worker on this host gets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from allocator.client.drivers import Answers
from allocator.operations.steps import Judgement, Verdict

if TYPE_CHECKING:
    from allocator.client.lease_files import LeaseFiles
    from allocator.operations.steps import JudgeHolder, KeepLeases, KeepTokens


class FileAnswers(Answers):
    """Keeps the tokens of claims, and their leases, in the lease files of a user.

    Args:
        files: The lease files.
    """

    def __init__(self, files: LeaseFiles) -> None:
        self.files = files

    def keep_tokens(self, step: KeepTokens) -> tuple[str, ...]:
        """Write down the tokens; return those of an earlier claim of these workers that was not finished."""
        named = zip(step.workers, step.tokens, strict=False)  # without names there is nothing to keep them under
        kept = [self.files.begin_claim(step.pool, step.host, worker, token)[0] for worker, token in named]
        return tuple(kept) if step.workers else step.tokens

    def keep_leases(self, step: KeepLeases) -> bool:
        """Write the lease files, then forget the tokens; return whether this did."""
        for lease in step.leases:
            for former in self.files.all(step.pool, step.host):
                if former.worker == lease.worker and former.port != lease.port:
                    self.files.remove(former)
            self.files.save(lease)
        ended = [self.files.end_claim(step.pool, step.host, worker) for worker in step.workers]
        return all(ended)

    def judge_holder(self, step: JudgeHolder) -> Judgement:
        """Return the token of a lease whose file is here, and what the kernel knows of any other."""
        known = self.files.find(step.holder.pool, step.holder.host, step.holder.worker)
        if known and known.fence == step.holder.fence and known.token:
            return Judgement(Verdict.OURS, known.token)
        return super().judge_holder(step)
