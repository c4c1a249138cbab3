"""Small bugs for the tokenizer: name, file, what the source says, what the mutant says."""

MODEL = "_model.py"
BLOCKS, CODER = "networks/_blocks.py", "networks/_autoencoder.py"

# fmt: off
MUTANTS = [
    ("decode without its convolution", MODEL, "self.decoder(self.post_quant_conv(quantized.contiguous()))", "self.decoder(self.quant_conv(quantized.contiguous()))"),
    ("encode without its convolution", MODEL, "latents = self.features(images)\n        return", "latents = self.encoder(images)\n        return"),
    ("encode flips the grid", MODEL, "return self.quantize.encode(latents)", "return self.quantize.encode(latents).transpose(1, 2)"),
    ("encode counts", MODEL, "return self.quantize.encode(latents)", "return self.quantize(latents).indices"),
    ("encoder detached", MODEL, "latents: Tensor = self.quant_conv(self.encoder(images))", "latents: Tensor = self.quant_conv(self.encoder(images).detach())"),
    ("decoder sees the latents", MODEL, "self._to_images(quantized), indices", "self._to_images(self.features(images)), indices"),
    ("latents centered over the batch", MODEL, "quantized, indices, loss, terms = self.quantize(self.features(images))",
     "z = self.features(images)\n        quantized, indices, loss, terms = self.quantize(z - z.mean(dim=0))"),
    ("batch normalization", BLOCKS,
     "return nn.GroupNorm(num_groups(channels), channels, eps=1e-6)",
     "return nn.BatchNorm2d(channels)"),
    ("loss detached", MODEL,
     "self._to_images(quantized), indices, loss, terms)",
     "self._to_images(quantized), indices, loss.detach(), terms)"),
    ("indices flattened", MODEL,
     "self._to_images(quantized), indices, loss, terms)",
     "self._to_images(quantized), indices.flatten(1), loss, terms)"),
    ("shortcut detached", BLOCKS, "self.nin_shortcut(x) + h", "self.nin_shortcut(x).detach() + h"),
    ("attention without its residual", BLOCKS, "x + self.proj_out(", "self.proj_out("),
    ("update not handed on", MODEL, "self.quantize.update_()", "pass"),
    ("decoder cuts its output", CODER,
     "result: Tensor = self.conv_out(F.silu(self.norm_out(h)))\n        return result\n\n\nclass Decoder",
     "result: Tensor = self.conv_out(F.silu(self.norm_out(h))).round()\n        return result\n\n\nclass Decoder"),
    ("encoder attends only the first image", BLOCKS,
     "h = F.scaled_dot_product_attention(q, k, v)",
     "h = F.scaled_dot_product_attention(q, k[:1].expand_as(k), v)"),
    ("encoder normalizes by the batch's mean", CODER,
     "h = self.conv_in(images)",
     "h = self.conv_in(images - images.mean())"),
]
