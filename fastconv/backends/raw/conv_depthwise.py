def offer(op, problem, properties):
    return None


def instances():
    return iter(())


def reductions():
    return iter(())
