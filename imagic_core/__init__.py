"""Imagic (Kawar et al., CVPR 2023) in plain PyTorch, one module a stage.

==================  =====================================================================
``objective``       equation 3: the reconstruction loss of one photograph
``fit``             the training loop that stages A and B share
``checkpoint``      a training between two steps, to be kept and given back
``embedding``       stage A, section 3.2 "Text embedding optimization"
``finetune``        stage B, section 3.2 "Model fine-tuning"
``left``            what stage B leaves of the sentence
``interpolate``     stage C, section 3.2 "Text embedding interpolation", equation 4
``edit``            what a run of stages A and B leaves
``edit_file``       the same in one file
``text2live``       a method that the paper compares with, which needs no model but CLIP
==================  =====================================================================

Nothing here knows ComfyUI: the model is anything that satisfies ``objective.Denoiser``.
"""
