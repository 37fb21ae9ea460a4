from fastconv.backends.reference import ReferenceBackend


class C(ReferenceBackend):
    name = "cpu"


backend = C()
