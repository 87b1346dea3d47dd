"""docs/people.md: its lab is applied, and its questions are asked."""

import re
from pathlib import Path

from tests.unit.access.world import a_world

PAGE = (Path(__file__).parents[3] / "docs" / "people.md").read_text()
KINDS = {"wk": "Workload", "vol": "Volume"}


async def test_the_lab_of_the_page_answers_as_the_page_says() -> None:
    manifests = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    asked = re.findall(
        r"^\| `pwm admin can (\w+) (\w+) (\w+)(?: -g ([\w.]+))?` \| (yes|no): (.+) \|$", PAGE, re.MULTILINE
    )
    assert len(manifests) == 1
    assert len(asked) == PAGE.count("| `pwm admin can ") > 8
    async with a_world() as world:
        answer = await world.ask("admin", "POST", "/v1/apply", body={"manifests": [{"text": manifests[0]}]})
        outcomes = [result["outcome"] for result in answer.json["results"]]
        assert outcomes == ["UNCHANGED", "CREATED", "CREATED", "CREATED", "CONFIGURED", "CREATED"], answer.body
        for user, verb, kind, group, said, rule in asked:
            query = {"user": user, "verb": verb, "kind": KINDS.get(kind, kind), **({"group": group} if group else {})}
            can = (await world.ask("admin", "GET", "/v1/admin/can", query=query)).json
            assert ("yes" if can.get("allowed") else "no", can["rule"]) == (said, rule)
