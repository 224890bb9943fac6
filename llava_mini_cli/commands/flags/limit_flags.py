"""When a run over media ends, and what its exit code says."""

from dataclasses import dataclass

from llava_mini_cli.commands.flags.run_flags import FailOnOption, LimitOption, MaxFailuresOption
from llava_mini_cli.config import RunLimits


@dataclass(frozen=True)
class LimitFlags:
    """The bounds of `RunFlags`, for commands without rows on standard output."""

    limit: LimitOption = None
    max_failures: MaxFailuresOption = None
    fail_on: FailOnOption = "any"

    def limits(self) -> RunLimits:
        """Checked. Raises `UsageError`."""
        return RunLimits(self.limit, self.max_failures)
