"""ComfyUI-Imagic: edit a real photograph by a sentence, with the checkpoint you already own."""

from .nodes import comfy_entrypoint

WEB_DIRECTORY = "./web"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
