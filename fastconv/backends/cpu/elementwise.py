from fastconv.backends.reference import backend

plan = backend.plan
