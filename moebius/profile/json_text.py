"""Format a profile as JSON for programs."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from moebius.profile.doubts import doubts
from moebius.profile.finding import Finding
from moebius.profile.result import Profile
from moebius.profile.verify import Verified


def as_json(
    profile: Profile, findings: Sequence[Finding], verified: Sequence[Verified] = ()
) -> str:
    """Return everything in the table, the findings and their verifications.

    Times are in seconds, and sizes in FLOPs and bytes.
    """
    measured = profile.measured
    values: dict[str, Any] = {
        "device": profile.device,
        "ceilings": asdict(profile.ceilings),
        "step_seconds": measured.seconds,
        "rounds": measured.rounds,
        "tokens_per_second": profile.tokens_per_second,
        "mfu": profile.mfu,
        "gpu": asdict(measured.gpu),
        "host_seconds": measured.host,
        "text": profile.text,
        "notes": profile.notes,
        "covered": measured.covered,
        "slowdown": measured.slowdown,
        "doubts": doubts(profile),
        "experts_per_token": measured.experts_per_token,
        "findings": [asdict(finding) for finding in findings],
        "verified": [
            {
                "finding": change.finding.title,
                "predicted": change.predicted,
                "before": change.before,
                "after": change.after,
                "crowding": change.crowding,
            }
            for change in verified
        ],
        "components": [asdict(row) | {"efficiency": row.efficiency} for row in profile.rows],
    }
    return json.dumps(values, indent=1)
