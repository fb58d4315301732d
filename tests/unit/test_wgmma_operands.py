"""The reader of machine code, on loops of a few instructions."""

from __future__ import annotations

import pytest
from wgmma_operands import overwritten_operands

LOOP = """
.L_x_0:
        /*0010*/                   {before} ;
        /*0020*/                   WARPGROUP.ARRIVE ;
        /*0030*/                   HGMMA.64x32x16.F32.BF16 R24, R40, gdesc[UR4], R24{own} ;
        /*0040*/                   {between} ;
        /*0050*/                   HGMMA.64x32x16.F32.BF16 R24, R44, gdesc[UR4], R24, gsb0 ;
        /*0060*/                   WARPGROUP.DEPBAR.LE gsb0, {pending} ;
        /*0070*/               @P0 BRA `(.L_x_0) ;
        /*0080*/                   WARPGROUP.DEPBAR.LE gsb0, 0x0 ;
        /*0090*/                   EXIT ;
"""
OTHER = "IADD3 R8, P6, R40, R44, RZ"


@pytest.mark.parametrize(
    ("before", "between", "own", "pending", "problems"),
    [
        (OTHER, OTHER, "", "0x0", 0),
        ("LDSM.16.M88.4 R44, [R8]", OTHER, "", "0x0", 0),
        ("LDSM.16.M88.4 R44, [R8]", OTHER, ", gsb0", "0x1", 1),
        ("LDS.64 R42, [R8]", OTHER, ", gsb0", "0x1", 0),
        ("LDS.64 R42, [R8]", OTHER, ", gsb0", "0x2", 1),
        (OTHER, "IADD3 R43, P6, R8, R9, RZ", "", "0x0", 1),
        (OTHER, "@!P6 IMAD.WIDE.U32 R46, R8, 0x10, R8", ", gsb0", "0x0", 0),
        ("@!P6 IMAD.WIDE.U32 R46, R8, 0x10, R8", OTHER, ", gsb0", "0x1", 1),
        ("STS.128 [R8], R44", OTHER, ", gsb0", "0x1", 0),
    ],
)
def test_a_write_that_no_wait_precedes_is_found(before, between, own, pending, problems):
    code = LOOP.format(before=before, between=between, own=own, pending=pending)
    assert len(overwritten_operands(code)) == problems
