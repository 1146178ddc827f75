import CShims

/// The unit of every kernel: one 512-bit register, two 256-bit ones or four 128-bit ones, so that the three
/// builds share their order of additions.
typealias Vector = SIMD16<Float>

/// The bits of a vector.
typealias Bits = SIMD16<UInt32>

/// Up to 16 consecutive elements.
struct Lanes {
    let first: Int
    /// Fewer than 16 only at the end of a range.
    let count: Int
    /// Memory may be read and written for all 16, though only `count` of them matter.
    let isWhole: Bool

    @inline(always)
    init(first: Int) {
        self.first = first
        count = 16
        isWhole = true
    }

    /// The last lanes of a range that ends at `end`, in memory that ends there or at `room`.
    @inline(always)
    init(first: Int, end: Int, room: Int = 0) {
        self.first = first
        count = min(16, end &- first)
        isWhole = first &+ 16 <= max(end, room)
    }
}

/// Runs `body` from `start` to `end` in steps of a vector, the last of which may be partial. With more `room` in
/// memory than that, the last step is faster, and what it leaves past the end is for the caller to overwrite.
///
/// Bodies here and below are named functions marked for inlining: a closure cannot be, and would become a call
/// per vector with its arguments in 128-bit registers.
@inline(always)
func forEachLanes(from start: Int = 0, to end: Int, room: Int = 0, _ body: (Lanes) -> Void) {
    var first = start
    while first &+ 16 <= end {
        body(Lanes(first: first))
        first &+= 16
    }
    if first < end {
        body(Lanes(first: first, end: end, room: room))
    }
}

/// Folds `n` elements into four accumulators, so that additions overlap, and joins them in a fixed order.
@inline(always)
func accumulateLanes<Accumulator>(
    _ zero: Accumulator, _ n: Int, room: Int, _ add: (inout Accumulator, Lanes) -> Void,
    join: (Accumulator, Accumulator) -> Accumulator
) -> Accumulator {
    var (a, b, c, d) = (zero, zero, zero, zero)
    var first = 0
    while first &+ 64 <= n {
        add(&a, Lanes(first: first))
        add(&b, Lanes(first: first &+ 16))
        add(&c, Lanes(first: first &+ 32))
        add(&d, Lanes(first: first &+ 48))
        first &+= 64
    }
    while first < n {
        add(&a, Lanes(first: first, end: n, room: room))
        first &+= 16
    }
    return join(join(a, b), join(c, d))
}

/// The given lanes of an array; lanes past its end hold 0.
@inline(always)
func load(_ source: UnsafePointer<Float>, _ lanes: Lanes) -> Vector {
    let start = source + lanes.first
    if lanes.isWhole { return UnsafeRawPointer(start).loadUnaligned(as: Vector.self) }
    return shims_load_part(start, Int64(lanes.count))
}

@inline(always)
func load(_ source: UnsafeMutablePointer<Float>, _ lanes: Lanes) -> Vector {
    load(UnsafePointer(source), lanes)
}

/// The vector with `padding` in the lanes past the end of an array.
@inline(always)
func padded(_ vector: Vector, _ lanes: Lanes, with padding: Float = 0) -> Vector {
    if lanes.count == 16 { return vector }
    let numbers = Vector(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    return choose(vector, padding, where: numbers .>= Float(lanes.count))
}

/// Stores a vector over the given lanes of an array and nothing past them.
@inline(always)
func store(_ vector: Vector, _ target: UnsafeMutablePointer<Float>, _ lanes: Lanes) {
    let start = target + lanes.first
    if lanes.isWhole {
        UnsafeMutableRawPointer(start).storeBytes(of: vector, as: Vector.self)
    } else {
        shims_store_part(start, vector, Int64(lanes.count))
    }
}

/// Stores or adds a vector.
@inline(always)
func emit(_ vector: Vector, _ target: UnsafeMutablePointer<Float>, _ lanes: Lanes, accumulate: Bool) {
    store(accumulate ? load(target, lanes) + vector : vector, target, lanes)
}

/// Stores or adds a product.
@inline(always)
func emitProduct(
    _ a: Vector, _ b: Vector, _ target: UnsafeMutablePointer<Float>, _ lanes: Lanes, accumulate: Bool
) {
    store(accumulate ? multiplyAdd(a, b, load(target, lanes)) : a * b, target, lanes)
}

/// `a * b + c`, in one rounding where the instruction set has it: elsewhere that is a library call per lane.
@inline(always)
func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Vector) -> Vector {
    #if FMA
        c.addingProduct(a, b)
    #else
        a * b + c
    #endif
}

/// `a * b + c` with one number for all `c`.
@inline(always)
func multiplyAdd(_ a: Vector, _ b: Vector, _ c: Float) -> Vector {
    multiplyAdd(a, b, Vector(repeating: c))
}

/// A set or clear lane is all ones or all zeros.
typealias Mask = SIMDMask<SIMD16<Int32>>

/// `b` where the mask is set, `a` elsewhere.
///
/// By operations on masks, which are those of the hardware. `replacing(with:where:)` is a branch per lane, into
/// which the compiler sinks the arithmetic that leads to `a` and `b`.
@inline(always)
func choose(_ a: Bits, _ b: Bits, where mask: Mask) -> Bits {
    let (a, b) = (unsafeBitCast(a, to: Mask.self), unsafeBitCast(b, to: Mask.self))
    return unsafeBitCast((a .& .!mask) .| (b .& mask), to: Bits.self)
}

@inline(always)
func choose(_ a: Vector, _ b: Vector, where mask: Mask) -> Vector {
    unsafeBitCast(
        choose(unsafeBitCast(a, to: Bits.self), unsafeBitCast(b, to: Bits.self), where: mask),
        to: Vector.self)
}

@inline(always)
func choose(_ a: Vector, _ b: Float, where mask: Mask) -> Vector {
    choose(a, Vector(repeating: b), where: mask)
}

/// The larger of each pair; `a` where either is NaN.
@inline(always)
func larger(_ a: Vector, _ b: Vector) -> Vector {
    choose(a, b, where: b .> a)
}

/// The smaller of each pair; `a` where either is NaN.
@inline(always)
func smaller(_ a: Vector, _ b: Vector) -> Vector {
    choose(a, b, where: b .< a)
}

/// `|x|`.
@inline(always)
func magnitude(_ x: Vector) -> Vector {
    unsafeBitCast(unsafeBitCast(x, to: Bits.self) & 0x7fff_ffff, to: Vector.self)
}

/// 1, -1 or 0.
@inline(always)
func sign(_ x: Vector) -> Vector {
    let one = unsafeBitCast(x, to: Bits.self) & 0x8000_0000 | 0x3f80_0000
    return choose(unsafeBitCast(one, to: Vector.self), 0, where: x .== 0)
}

/// The largest lane, NaN lanes left out.
@inline(always)
func largest(_ x: Vector) -> Float {
    // Of the lower lanes and those above them; what the upper lanes then hold does not matter.
    let a = larger(x, Vector(lowHalf: x.highHalf, highHalf: x.highHalf))
    let b = larger(a, repeated(a.lowHalf.highHalf))
    let c = larger(b, repeated(SIMD4(lowHalf: b.lowHalf.lowHalf.highHalf, highHalf: b.lowHalf.lowHalf.highHalf)))
    return c[1] > c[0] ? c[1] : c[0]
}

/// Four lanes, in each four of a vector.
@inline(always)
private func repeated(_ lanes: SIMD4<Float>) -> Vector {
    let half = SIMD8(lowHalf: lanes, highHalf: lanes)
    return Vector(lowHalf: half, highHalf: half)
}

/// The sum of the lanes, by halves.
@inline(always)
func sumOfLanes(_ x: Vector) -> Float {
    let a = x.lowHalf + x.highHalf
    let b = a.lowHalf + a.highHalf
    let c = b.lowHalf + b.highHalf
    return c.x + c.y
}

/// Vectors that a loop holds in registers.
typealias Registers = InlineArray<16, Vector>

/// Zeros to start with.
@inline(always)
func zeroRegisters() -> Registers {
    // Not the generic initializer: its specialisation would be shared between the instruction sets.
    [
        .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero,
        .zero, .zero, .zero, .zero, .zero, .zero, .zero, .zero,
    ]
}

/// A vector in double precision.
typealias DoubleVector = (low: SIMD8<Double>, high: SIMD8<Double>)

/// The same numbers in double precision.
@inline(always)
func widened(_ x: SIMD8<Float>) -> SIMD8<Double> {
    // Not the generic initializer either.
    var wide = SIMD8<Double>.zero
    for lane in 0..<8 { wide[lane] = Double(x[lane]) }
    return wide
}

/// Adds the squares of the lanes of `x`, each exact in double precision.
@inline(always)
func addSquares(_ x: Vector, to sum: inout DoubleVector) {
    let (low, high) = (widened(x.lowHalf), widened(x.highHalf))
    sum.low += low * low
    sum.high += high * high
}

/// The sum of the lanes, by halves.
@inline(always)
func sumOfLanes(_ x: DoubleVector) -> Double {
    let a = x.low + x.high
    let b = a.lowHalf + a.highHalf
    let c = b.lowHalf + b.highHalf
    return c.x + c.y
}
