import torch, pytest, os
from types import SimpleNamespace
from host import imagic
def test_measure(pack, comfy, tiny_checkpoint, capsys):
    nodes=imagic.Pack(pack); ef=pack.imagic_core.edit_file
    for dtype in (torch.float32, torch.float16):
        model=imagic.load(tiny_checkpoint, dtype=dtype)
        t,l=imagic.conditioning(),imagic.latent()
        o,_=nodes.optimize(model,t,l,5,1e-2,0)
        tuned,lora,_=nodes.finetune(model,o,l,"lora",40,1e-3,0)
        r=ef.rounded(lora)
        kept={k:v.float() for k,v in r.items()}
        with torch.inference_mode(): m2=nodes.host.apply_lora(model,kept)
        a,b,c=(nodes.loss(m,o,l,16) for m in (model,tuned,m2))
        with capsys.disabled(): print("\nMEASURE",dtype,"base",a,"tuned",b,"fp16 lora",c,"rel",abs(c-b)/b,"of the fall",abs(c-b)/(a-b), {str(v.dtype) for v in r.values()}, "n fp32", sum(v.dtype==torch.float32 and v.ndim>0 for v in r.values()))
