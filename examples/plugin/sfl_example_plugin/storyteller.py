"""A model family: Llama's blocks under a model type of their own."""

from sfl.models.families.llama import LlamaLike, Variant


class Storyteller(LlamaLike):
    """By default LoRA goes to attention alone."""

    name = "storyteller"
    variants = {"storyteller": Variant("llama", "Llama")}  # noqa: RUF012 - nobody changes it

    def targets(self, model_type: str) -> tuple[str, ...]:
        """The four projections of attention."""
        return ("q_proj", "k_proj", "v_proj", "o_proj")


STORYTELLER = Storyteller()
