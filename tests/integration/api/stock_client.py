"""A user's day with openstacksdk as it comes from PyPI, in a process of its own. Prints what it saw, as JSON.

python stock_client.py AUTH_URL USER PASSWORD PROJECT COMPUTE_URL IMAGE FLAVOR
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")

import openstack  # noqa: E402 - the library's own warnings are not what is tested

auth_url, user, password, project, compute, image, flavor = sys.argv[1:]
cloud = openstack.connect(
    auth={
        "auth_url": auth_url,
        "username": user,
        "password": password,
        "project_name": project,
        "user_domain_name": "Default",
        "project_domain_name": "Default",
    },
    compute_endpoint_override=compute,
    region_name="lab",
    load_envvars=False,
    load_yaml_config=False,
)
seen: dict[str, object] = {}
seen["flavors"] = flavor in [each.id for each in cloud.compute.flavors()]
found = cloud.compute.find_flavor(flavor, get_extra_specs=True, ignore_missing=False)
seen["extra_specs"] = found.extra_specs
server = cloud.compute.create_server(
    name="stock.example.com", image_id=image, flavor_id=flavor, networks="none", metadata={"made": "by-sdk"}
)
server = cloud.compute.wait_for_server(server, wait=60, interval=0.2)
seen["status"], seen["vm_state"], seen["metadata"] = server.status, server.vm_state, server.metadata
seen["found"] = cloud.compute.find_server("stock.example.com", ignore_missing=False).id == server.id
seen["listed"] = [each.name for each in cloud.compute.servers(name="stock.example.com")]
seen["console"] = cloud.compute.get_server_console_output(server)["output"]
cloud.compute.set_server_metadata(server, more="yes")
seen["more"] = cloud.compute.get_server_metadata(server).metadata
cloud.compute.update_server(server, name="renamed", description="by the SDK")
cloud.compute.stop_server(server)
server = cloud.compute.wait_for_server(server, status="SHUTOFF", wait=60, interval=0.2)
cloud.compute.start_server(server)
server = cloud.compute.wait_for_server(server, wait=60, interval=0.2)
cloud.compute.reboot_server(server, "HARD")
server = cloud.compute.wait_for_server(server, wait=60, interval=0.2)
seen["name"], seen["description"] = server.name, server.description
seen["limits"] = cloud.compute.get_limits().absolute.instances_used
seen["zones"] = [zone.name for zone in cloud.compute.availability_zones()]
cloud.compute.delete_server(server)
cloud.compute.wait_for_delete(server, wait=60, interval=0.2)
seen["left"] = [each.name for each in cloud.compute.servers()]
sys.stdout.write(json.dumps(seen))
