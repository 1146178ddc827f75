import CShims

/// Sixteen numbers of two bytes, as bits.
typealias HalfVector = SIMD16<UInt16>

/// The given lanes of an array of two-byte numbers; lanes past its end hold 0.
@inline(always)
func load(_ source: UnsafePointer<UInt16>, _ lanes: Lanes) -> HalfVector {
    let start = UnsafeRawPointer(source + lanes.first)
    if lanes.isWhole { return start.loadUnaligned(as: HalfVector.self) }
    var vector = HalfVector.zero
    withUnsafeMutableBytes(of: &vector) {
        $0.baseAddress.unsafelyUnwrapped.copyMemory(from: start, byteCount: lanes.count &* 2)
    }
    return vector
}

/// Stores two-byte numbers over the given lanes of an array and nothing past them.
@inline(always)
func store(_ vector: HalfVector, _ target: UnsafeMutablePointer<UInt16>, _ lanes: Lanes) {
    let start = UnsafeMutableRawPointer(target + lanes.first)
    if lanes.isWhole {
        start.storeBytes(of: vector, as: HalfVector.self)
    } else {
        withUnsafeBytes(of: vector) {
            start.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: lanes.count &* 2)
        }
    }
}

// The loops below are not the generic initializers: their specialisations would be shared between the
// instruction sets.

@inline(always)
func widened(_ x: HalfVector) -> Bits {
    var wide = Bits.zero
    for lane in 0..<16 { wide[lane] = UInt32(x[lane]) }
    return wide
}

@inline(always)
func truncated(_ x: Bits) -> HalfVector {
    var narrow = HalfVector.zero
    for lane in 0..<16 { narrow[lane] = UInt16(truncatingIfNeeded: x[lane]) }
    return narrow
}

/// The value of bfloat16 bits: the upper half of a float.
@inline(always)
func fromBF16(_ x: HalfVector) -> Vector {
    unsafeBitCast(widened(x) &<< 16, to: Vector.self)
}

/// The nearest bfloat16, ties to even, in the lower halves. Integer arithmetic, so that denormals survive any mode of the
/// unit.
@inline(always)
func bf16Bits(_ x: Vector) -> Bits {
    let bits = unsafeBitCast(x, to: Bits.self)
    let rounded = bits &+ 0x7fff &+ (bits &>> 16 & 1)
    return choose(rounded, bits | 0x40_0000, where: x .!= x) &>> 16
}

@inline(always)
func toBF16(_ x: Vector) -> HalfVector { truncated(bf16Bits(x)) }

#if FMA
    /// The value of binary16 bits, by the conversion instruction that every CPU with FMA has.
    @inline(always)
    func fromF16(_ x: HalfVector) -> Vector {
        let half = unsafeBitCast(x, to: SIMD16<Float16>.self)
        var wide = Vector.zero
        for lane in 0..<16 { wide[lane] = Float(half[lane]) }
        return wide
    }

    /// The nearest binary16, ties to even.
    @inline(always)
    func toF16(_ x: Vector) -> HalfVector {
        var half = SIMD16<Float16>.zero
        for lane in 0..<16 { half[lane] = Float16(x[lane]) }
        return unsafeBitCast(half, to: HalfVector.self)
    }
#else
    /// The value of binary16 bits, bit for bit as the conversion instruction of newer CPUs has it.
    ///
    /// A denormal gets an exponent and loses the implied bit again by a subtraction of normal numbers.
    @inline(always)
    func fromF16(_ x: HalfVector) -> Vector {
        let bits = widened(x)
        let shifted = (bits & 0x7fff) &<< 13
        let rebias: UInt32 = (127 - 15) << 23
        let lifted = unsafeBitCast(shifted &+ (rebias + 1 << 23), to: Vector.self)
        let denormal = lifted - Float(bitPattern: rebias + 1 << 23)
        let infinite = shifted | 0x7f80_0000
        // As floats, which compare like their bits.
        let small = unsafeBitCast(shifted, to: Vector.self)
        let smallInfinity = Float(bitPattern: 31 << 23)
        var magnitude = shifted &+ rebias
        magnitude = choose(
            magnitude, unsafeBitCast(denormal, to: Bits.self), where: small .< .leastNormalMagnitude)
        magnitude = choose(magnitude, infinite, where: small .>= smallInfinity)
        magnitude = choose(magnitude, infinite | 0x40_0000, where: small .> smallInfinity)
        return unsafeBitCast(magnitude | (bits & 0x8000) &<< 16, to: Vector.self)
    }

    /// The nearest binary16, ties to even, bit for bit as the conversion instruction of newer CPUs has it.
    ///
    /// A result below the normal range is rounded by adding 0.5, whose last bit weighs as much as that of a
    /// binary16 denormal.
    @inline(always)
    func toF16(_ x: Vector) -> HalfVector {
        let bits = unsafeBitCast(x, to: Bits.self)
        let magnitude = bits & 0x7fff_ffff
        let value = unsafeBitCast(magnitude, to: Vector.self)
        let rebias: UInt32 = (127 - 15) << 23
        let normal = (magnitude &- rebias &+ 0xfff &+ (magnitude &>> 13 & 1)) &>> 13
        let denormal = unsafeBitCast(value + 0.5, to: Bits.self) &- Float(0.5).bitPattern
        var rounded = choose(normal, denormal, where: value .< 0x1p-14)
        rounded = choose(rounded, Bits(repeating: 0x7c00), where: value .>= 0x1p16)
        rounded = choose(rounded, magnitude &>> 13 & 0x3ff | 0x7e00, where: x .!= x)
        return truncated(rounded | bits &>> 16 & 0x8000)
    }
#endif

/// Stores two vectors over consecutive lanes as the nearest numbers of a half format. A denormal may become 0, as it counts
/// for in what computes with them.
@inline(always)
func storeRounded(_ low: Vector, _ high: Vector, _ target: UnsafeMutablePointer<UInt16>, _ format: shims_format) {
    if format.rawValue == SHIMS_BF16.rawValue {
        #if BF16_DOT_PRODUCT
            UnsafeMutableRawPointer(target).storeBytes(of: shims_round_pairs(low, high), as: Vector.self)
        #else
            store(toBF16(low), target, Lanes(first: 0))
            store(toBF16(high), target, Lanes(first: 16))
        #endif
    } else {
        store(toF16(low), target, Lanes(first: 0))
        store(toF16(high), target, Lanes(first: 16))
    }
}

/// `out[i] = x[i]`, exactly; a NaN comes out quiet.
func toF32(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafePointer<UInt16>, _ format: shims_format, _ n: Int64
) {
    @inline(always)
    func bf16(_ lanes: Lanes) { store(fromBF16(load(x, lanes)), out, lanes) }
    @inline(always)
    func f16(_ lanes: Lanes) { store(fromF16(load(x, lanes)), out, lanes) }
    if format.rawValue == SHIMS_BF16.rawValue {
        forEachLanes(to: Int(n), bf16)
    } else {
        forEachLanes(to: Int(n), f16)
    }
}

/// `out[i]` becomes the nearest to `x[i]`, ties to even; too large becomes infinite, NaN a quiet NaN.
func fromF32(
    _ out: UnsafeMutablePointer<UInt16>, _ format: shims_format, _ x: UnsafePointer<Float>, _ n: Int64
) {
    @inline(always)
    func bf16(_ lanes: Lanes) { store(toBF16(load(x, lanes)), out, lanes) }
    @inline(always)
    func f16(_ lanes: Lanes) { store(toF16(load(x, lanes)), out, lanes) }
    if format.rawValue == SHIMS_BF16.rawValue {
        forEachLanes(to: Int(n), bf16)
    } else {
        forEachLanes(to: Int(n), f16)
    }
}
