import CShims

/// Elements whose gradients in a half format share two lines of memory with their sum: a line for each of two gradients.
private let group = 32

/// Keeps `n` elements of a gradient in a half format, unscaled, in the memory of a sum to come: the one of place 0 or 1. The
/// last few elements, which are no group, go to the sum at once.
func holdHalf(
    _ out: UnsafeMutablePointer<Float>, _ place: Int32, _ x: UnsafePointer<UInt16>, _ format: shims_format,
    _ scale: Float,
    _ n: Int64, _ pastCaches: Int32
) {
    let end = Int(n) & ~(group &- 1)
    let line = out + Int(place) &* 16
    if pastCaches != 0 && Int(bitPattern: out) & 63 == 0 {
        @inline(always)
        func stream(_ first: Int) { shims_stream(line + first, bits(x, first)) }
        forEachGroup(to: end, stream)
        shims_stream_end()
    } else {
        @inline(always)
        func copy(_ first: Int) {
            UnsafeMutableRawPointer(line + first).storeBytes(of: bits(x, first), as: Vector.self)
        }
        forEachGroup(to: end, copy)
    }
    addScaled(out + end, x + end, format, scale, n &- Int64(end), place)
}

/// Makes `out` the sum of the one or two gradients that it holds, each times its scale, and of `scale * x` unless `x` is nil:
/// the bits of as many calls of ``addScaled``.
func addHeld(
    _ out: UnsafeMutablePointer<Float>, _ held: Int32, _ scale0: Float, _ scale1: Float, _ x: UnsafePointer<UInt16>?,
    _ format: shims_format, _ scale: Float, _ n: Int64
) {
    let end = Int(n) & ~(group &- 1)
    let (factor0, factor1) = (Vector(repeating: scale0), Vector(repeating: scale1))
    let factor = Vector(repeating: scale)
    @inline(always)
    func sum(_ first: Int, _ half: Int, _ value: (HalfVector) -> Vector) -> Vector {
        let lines = UnsafeRawPointer(out + first) + half &* 32
        let x0 = value(lines.loadUnaligned(as: HalfVector.self))
        // A product with 1 would flush denormals.
        var sum = scale0 == 1 ? x0 : factor0 * x0
        if held == 2 {
            sum = multiplyAdd(factor1, value(lines.loadUnaligned(fromByteOffset: 64, as: HalfVector.self)), sum)
        }
        if let x { sum = multiplyAdd(factor, value(load(x, Lanes(first: first &+ half &* 16))), sum) }
        return sum
    }
    @inline(always)
    func add(_ first: Int, _ value: (HalfVector) -> Vector) {
        let (low, high) = (sum(first, 0, value), sum(first, 1, value))
        store(low, out, Lanes(first: first))
        store(high, out, Lanes(first: first &+ 16))
    }
    @inline(always)
    func addBF16(_ first: Int) { add(first, fromBF16) }
    @inline(always)
    func addF16(_ first: Int) { add(first, fromF16) }
    if format.rawValue == SHIMS_BF16.rawValue {
        forEachGroup(to: end, addBF16)
    } else {
        forEachGroup(to: end, addF16)
    }
    if let x { addScaled(out + end, x + end, format, scale, n &- Int64(end), 1) }
}

@inline(always)
private func forEachGroup(to end: Int, _ body: (Int) -> Void) {
    var first = 0
    while first < end {
        body(first)
        first &+= group
    }
}

/// The bits of a group's elements.
@inline(always)
private func bits(_ x: UnsafePointer<UInt16>, _ first: Int) -> Vector {
    UnsafeRawPointer(x + first).loadUnaligned(as: Vector.self)
}
