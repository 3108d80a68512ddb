"""What runtimes ask of a network plugin, read: whatever is not as it should be is one line for their user. Pure."""

MODES, FLAGS = ("l2", "l3", "l3s"), ("bridge", "private", "vepa")
PUBLISHED = "-p: a container of this network has an address of its own, at which its ports are reached"


class Fault(Exception):
    """That line."""


def dictionary(inside, key):
    """The object there, empty where there is none. Errors: Fault."""
    found = inside.get(key)
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise Fault(f"{key}: must be an object")
    return found


def objects(inside, key):
    """The list of objects there. Errors: Fault."""
    found = inside.get(key)
    if found is None:
        return []
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise Fault(f"{key}: must be a list of objects")
    return found


def check_known(options, known):
    """Errors: Fault for an option that is none of `known`."""
    for key in options:
        if key not in known:
            raise Fault(f"option {key}: unknown; known are {', '.join(sorted(known))}")


def check_choice(options, key, known):
    """Errors: Fault for a value that is none of `known`."""
    if options.get(key) not in (None, *known):
        raise Fault(f"option {key}: {options[key]} is not {', '.join(known)}")


def guards(text):
    """As the API has them: one word for all or none, or a list, which options write with colons."""
    return text if text in ("strict", "off") else str(text).split(":")
