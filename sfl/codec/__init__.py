"""Hidden states and their gradients as few bytes: `[transform |] .. quantiser [| coder]`.

A packet describes itself; a `Decoder` needs nothing else but, for delta coding, the packets before
it. A further stage is one file, and one line in `stages.STAGES`. Importing this package imports no
torch, as settings ask which stages there are.
"""
