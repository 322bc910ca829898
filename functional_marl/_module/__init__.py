"""One agent's module: what it is, how it is initialized, and how it is called with parameters from outside.

- ``module_spec``: what the module is, without its numbers. ``leaves``, ``lazy`` and ``held_objects`` are its tools.
- ``build``: a factory under a seed. ``reset``: a module given in place of a factory.
- ``record_init`` and ``replay_init``: a recorded initialization fills further slots without building modules.
- ``stateless_call``: the call. ``stateless_module``: the copy that is called, and restored after it.
- ``code_reading`` and ``write_detection``: what a forward may write into, and what it has written into.
- ``limitations``: modules that are refused, and parts that vmap cannot run.
"""
