import CShims

/// 64-bit numbers in the place of two lanes each.
private typealias WideBits = SIMD8<UInt64>

/// Random bits for 16 consecutive elements from `first` on: Philox2x32-10 (Salmon et al., SC 2011) of an element's number and
/// that of its addition, so that they do not depend on what is computed together.
@inline(always)
private func randomBits(_ first: Int, _ addition: UInt32, _ key: UInt32) -> Bits {
    let numbers = Bits(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    var left = numbers &+ UInt32(truncatingIfNeeded: first)
    var right = Bits(repeating: addition)
    var key = key
    let lower: UInt64 = 0xffff_ffff
    for _ in 0..<10 {
        // The products of even and of odd lanes.
        let pairs = unsafeBitCast(left, to: WideBits.self)
        let even = (pairs & lower) &* 0xd256_d193
        let odd = (pairs &>> 32) &* 0xd256_d193
        let high = unsafeBitCast(even &>> 32 | odd & ~lower, to: Bits.self)
        left = high ^ Bits(repeating: key) ^ right
        right = unsafeBitCast(even & lower | odd &<< 32, to: Bits.self)
        key = key &+ 0x9e37_79b9
    }
    return left
}

/// The number in bfloat16 below or above in magnitude, above with the probability that the distance to the one below is of
/// that between them.
@inline(always)
private func stochasticBits(_ x: Vector, _ random: Bits) -> Bits {
    let bits = unsafeBitCast(x, to: Bits.self)
    let moved = bits &+ (random & 0xffff)
    let isFinite = unsafeBitCast(bits & 0x7fff_ffff, to: Vector.self) .< Float.infinity
    return choose(choose(bits, bits | 0x40_0000, where: x .!= x), moved, where: isFinite) &>> 16
}

/// The sum of 32-bit numbers.
@inline(always)
private func total(_ counts: Bits) -> Int64 {
    var sum: Int64 = 0
    for lane in 0..<16 { sum &+= Int64(counts[lane]) }
    return sum
}

/// What an addition has counted: numbers other than 0, and those of them that have changed nothing.
private typealias Counts = (added: Bits, unchanged: Bits)

/// `sum[i] += x[i]`, rounded to bfloat16.
func addToBF16(
    _ sum: UnsafeMutablePointer<UInt16>, _ compensation: UnsafeMutablePointer<UInt16>?, _ x: UnsafePointer<Float>,
    _ addition: UnsafePointer<shims_bf16_addition>, _ n: Int64, _ counts: UnsafeMutablePointer<Int64>
) {
    let options = addition.pointee
    let isFirst = options.accumulate == 0
    let one = Bits(repeating: 1)
    @inline(always)
    func old(_ bits: UnsafePointer<UInt16>, _ lanes: Lanes) -> HalfVector { isFirst ? .zero : load(bits, lanes) }
    @inline(always)
    func note(_ counts: inout Counts, _ x: Vector, isUnchanged: Mask) {
        counts.added = counts.added &+ choose(.zero, one, where: x .!= .zero)
        counts.unchanged = counts.unchanged &+ choose(.zero, one, where: (x .!= .zero) .& isUnchanged)
    }
    @inline(always)
    func addNearest(_ counts: inout Counts, _ lanes: Lanes) {
        let (before, term) = (old(sum, lanes), load(x, lanes))
        let bits = bf16Bits(fromBF16(before) + term)
        store(truncated(bits), sum, lanes)
        note(&counts, term, isUnchanged: bits .== widened(before))
    }
    @inline(always)
    func addStochastically(_ counts: inout Counts, _ lanes: Lanes) {
        let (before, term) = (old(sum, lanes), load(x, lanes))
        let random = randomBits(Int(options.first) &+ lanes.first, options.ordinal, options.key)
        let bits = stochasticBits(fromBF16(before) + term, random)
        store(truncated(bits), sum, lanes)
        note(&counts, term, isUnchanged: bits .== widened(before))
    }
    @inline(always)
    func join(_ a: Counts, _ b: Counts) -> Counts { (a.added &+ b.added, a.unchanged &+ b.unchanged) }
    let none: Counts = (.zero, .zero)
    let found: Counts
    if let compensation {
        @inline(always)
        func addCompensated(_ counts: inout Counts, _ lanes: Lanes) {
            let (before, excess, term) = (old(sum, lanes), old(compensation, lanes), load(x, lanes))
            let wanted = term - fromBF16(excess)
            let bits = bf16Bits(fromBF16(before) + wanted)
            // What the sum has moved beyond what it was to.
            let moved = unsafeBitCast(bits &<< 16, to: Vector.self) - fromBF16(before)
            let newExcess = bf16Bits(moved - wanted)
            store(truncated(bits), sum, lanes)
            store(truncated(newExcess), compensation, lanes)
            note(
                &counts, term,
                isUnchanged: (bits .== widened(before)) .& (newExcess .== widened(excess)))
        }
        found = accumulateLanes(none, Int(n), room: 0, addCompensated, join: join)
    } else if options.rounding.rawValue == SHIMS_STOCHASTIC.rawValue {
        found = accumulateLanes(none, Int(n), room: 0, addStochastically, join: join)
    } else {
        found = accumulateLanes(none, Int(n), room: 0, addNearest, join: join)
    }
    counts[0] &+= total(found.added)
    counts[1] &+= total(found.unchanged)
}

/// `out[i]` is the sum without what it has in excess, if that is known.
func fromBF16Sums(
    _ out: UnsafeMutablePointer<Float>, _ sum: UnsafePointer<UInt16>, _ compensation: UnsafePointer<UInt16>?,
    _ n: Int64
) {
    guard let compensation else { return toF32(out, sum, SHIMS_BF16, n) }
    @inline(always)
    func body(_ lanes: Lanes) {
        store(fromBF16(load(sum, lanes)) - fromBF16(load(compensation, lanes)), out, lanes)
    }
    forEachLanes(to: Int(n), body)
}

/// Counts the numbers other than 0, and those of them that are 0 in a format of two bytes.
func countFlushed(_ x: UnsafePointer<Float>, _ format: shims_format, _ n: Int64, _ counts: UnsafeMutablePointer<Int64>)
{
    let one = Bits(repeating: 1)
    @inline(always)
    func note(_ counts: inout Counts, _ x: Vector, _ rounded: Vector) {
        counts.added = counts.added &+ choose(.zero, one, where: x .!= .zero)
        counts.unchanged = counts.unchanged &+ choose(.zero, one, where: (x .!= .zero) .& (rounded .== .zero))
    }
    @inline(always)
    func inBF16(_ counts: inout Counts, _ lanes: Lanes) {
        let x = load(x, lanes)
        note(&counts, x, unsafeBitCast(bf16Bits(x) &<< 16, to: Vector.self))
    }
    @inline(always)
    func inF16(_ counts: inout Counts, _ lanes: Lanes) {
        let x = load(x, lanes)
        note(&counts, x, fromF16(toF16(x)))
    }
    @inline(always)
    func join(_ a: Counts, _ b: Counts) -> Counts { (a.added &+ b.added, a.unchanged &+ b.unchanged) }
    let none: Counts = (.zero, .zero)
    let found =
        format.rawValue == SHIMS_BF16.rawValue
        ? accumulateLanes(none, Int(n), room: 0, inBF16, join: join)
        : accumulateLanes(none, Int(n), room: 0, inF16, join: join)
    counts[0] &+= total(found.added)
    counts[1] &+= total(found.unchanged)
}
