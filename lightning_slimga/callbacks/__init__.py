"""WHEN: at which moment of a Lightning fit something happens. The only room that imports Lightning.

- ``prune``: search, surgery and fine-tuning: ``GeneticPruneCallback``.
- ``sparsity``: sparse training: ``SparsityCallback``.
- ``internals``: all that touches Lightning's private API.
- ``from_environment``: callbacks for every Trainer, asked for by an environment variable.
"""
