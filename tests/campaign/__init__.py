"""Bad calls of the whole public interface: every function, every parameter, every kind of bad value.

Calls are made from the signatures, so a new public function is covered as soon as it exists (or the
campaign fails and says which parameter it has no good value for). `python -m tests.campaign` prints
the counts; no annotation is checked at run time there, as for users.
"""
