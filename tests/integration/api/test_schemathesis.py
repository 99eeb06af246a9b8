"""schemathesis, against the API and its own document: whatever it thinks of, no answer is a fault of the service."""

import asyncio
import sys
from pathlib import Path

from tests.compute_api import file_database, serving
from tests.unit.api.requests import make_flavor, make_image, server
from tests.unit.api.test_public_keys import ED25519

_SECONDS = 300
_TOLD = 20_000
_CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"
KEYPAIR = {"name": "laptop", "public_key": ED25519}


async def test_schemathesis(tmp_path: Path) -> None:
    """It finds no 500, no status that the document does not tell, no fault in another form than the document's."""
    async with serving(await file_database(tmp_path)) as api:
        await make_flavor(api)
        made = [
            await api.ask("POST", "/servers", json=server(make_image(api)), user="local", project="local"),
            await api.ask("POST", "/os-keypairs", json={"keypair": KEYPAIR}, user="local"),
        ]
        assert [status for status, _ in made] == [202, 200]
        parameters = {"flavor_id": "small", "keypair_name": "laptop", "server_id": made[0][1]["server"]["id"]}
        lines = [f'"path.{name}" = "{value}"' for name, value in parameters.items()]
        (tmp_path / "schemathesis.toml").write_text("\n".join(["[parameters]", *lines]))
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name("schemathesis")),
            *("run", f"{api.url}/openapi.json", "--checks", _CHECKS, "--phases", "examples,coverage,fuzzing"),
            *("--max-examples", "10", "--generation-deterministic", "--no-color"),
            *("--request-timeout", "30", "--continue-on-failure"),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        async with asyncio.timeout(_SECONDS):
            told, _ = await process.communicate()
    assert process.returncode == 0, told.decode()[-_TOLD:]
