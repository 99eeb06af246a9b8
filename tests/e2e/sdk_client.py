"""A server by openstacksdk's cloud layer, as Ansible's modules use it: made, waited for, deleted. Prints what it saw.

python sdk_client.py IMAGE FLAVOR, with the variables of an openrc
"""

import json
import sys
import warnings

warnings.simplefilter("ignore")

import openstack  # noqa: E402 - the library's own warnings are not what is tested

image, flavor = sys.argv[1:]
cloud = openstack.connect(load_yaml_config=False)
made = cloud.create_server("by-the-sdk", image=image, flavor=flavor, wait=True, timeout=120)
found = cloud.get_server("by-the-sdk")
assert found is not None
seen = {
    "status": made.status,
    "addresses": [[each["addr"] for each in entries] for entries in made.addresses.values()],
    "same": found.id == made.id,
    "reached_at": found.access_ipv4,
    "deleted": cloud.delete_server(made.id),
}
cloud.compute.wait_for_delete(made, interval=0.2, wait=60)
seen["left"] = [each.name for each in cloud.list_servers()]
sys.stdout.write(json.dumps(seen))
