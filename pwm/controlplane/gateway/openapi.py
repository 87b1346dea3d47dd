"""draft"""


def document(routes, *, title, version):
    return {}
