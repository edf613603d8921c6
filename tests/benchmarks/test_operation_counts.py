"""Counting operations: shapes alone are enough, and the text's share is what a prepared step saves."""

from types import ModuleType

import tiny_bases


def test_the_texts_share_is_a_product_of_its_shapes(benchmark: ModuleType):
    unet = tiny_bases.sd_pipeline().unet
    layers = [unet.get_submodule(name.removesuffix(".processor")) for name in unet.attn_processors if "attn2" in name]
    shapes = [(one.to_k.in_features, one.to_k.out_features) for one in layers for _ in ("to_k", "to_v")]
    counts = benchmark.count(unet.to("meta"), side=16)
    assert counts["text_kv"] == sum(2 * 2 * 77 * d_in * d_out for d_in, d_out in shapes)
    assert counts["tara cross_kv"] == sum(2 * 8 * (d_in + d_out) for d_in, d_out in shapes)
    assert counts["diffusers cross_kv"] == 2 * 77 * counts["tara cross_kv"]
    assert counts["step"] > counts["published"] > counts["text_kv"]
