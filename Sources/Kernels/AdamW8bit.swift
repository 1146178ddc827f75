import CShims

/// Sixteen codes.
private typealias Codes = SIMD16<UInt8>

/// The given lanes of an array of codes; lanes past its end hold 0.
@inline(always)
private func load(_ source: UnsafePointer<UInt8>, _ lanes: Lanes) -> Codes {
    let start = UnsafeRawPointer(source + lanes.first)
    if lanes.isWhole { return start.loadUnaligned(as: Codes.self) }
    var codes = Codes.zero
    withUnsafeMutableBytes(of: &codes) {
        $0.baseAddress.unsafelyUnwrapped.copyMemory(from: start, byteCount: lanes.count)
    }
    return codes
}

/// Stores codes over the given lanes of an array and nothing past them.
@inline(always)
private func store(_ codes: Codes, _ target: UnsafeMutablePointer<UInt8>, _ lanes: Lanes) {
    let start = UnsafeMutableRawPointer(target + lanes.first)
    if lanes.isWhole {
        start.storeBytes(of: codes, as: Codes.self)
    } else {
        withUnsafeBytes(of: codes) {
            start.copyMemory(from: $0.baseAddress.unsafelyUnwrapped, byteCount: lanes.count)
        }
    }
}

/// Codes are the companding of G.711 (µ-law): a segment, which is an exponent, and a place in it, which is a mantissa, of a
/// number that is 2^-7 too large, so that the lowest of the 8 segments begins at 0. The highest one ends at 2.
///
/// The exponent of this offset ends in three zeros: the bits of the float are a code, shifted, in those of the offset.
private let codeOffset: Float = 0x1p-7

/// What the floats of codes are multiplied by, and the offset that is then taken off.
private struct Unit {
    let factor: Vector
    let offset: Vector

    @inline(always)
    init(_ factor: Float) {
        self.factor = Vector(repeating: factor)
        offset = Vector(repeating: -codeOffset * factor)
    }
}

/// A sign, the segment and 4 bits of mantissa, for the nearest number.
private enum SignedCode {
    /// The number of the largest code.
    static let largest: Float = 1.9296875  // 2 - 2^-4 - 2^-7
    private static let shift: UInt32 = 19
    private static let magnitude: UInt32 = 0x03F8_0000
    private static let sign: UInt32 = 0x8000_0000

    @inline(always)
    static func numbers(_ codes: Codes, in unit: Unit) -> Vector {
        var bits = Bits.zero
        for lane in 0..<16 { bits[lane] = UInt32(bitPattern: Int32(Int8(bitPattern: codes[lane]))) }
        bits = bits &<< shift
        let number = unsafeBitCast(bits & (sign | magnitude) | codeOffset.bitPattern, to: Vector.self)
        let signedOffset = unsafeBitCast(bits & sign ^ unsafeBitCast(unit.offset, to: Bits.self), to: Vector.self)
        return multiplyAdd(number, unit.factor, signedOffset)
    }

    /// `scale` takes numbers to ``largest`` at most.
    @inline(always)
    static func codes(of numbers: Vector, times scale: Vector) -> Codes {
        let signedOffset = unsafeBitCast(numbers, to: Bits.self) & sign | codeOffset.bitPattern
        let number = multiplyAdd(numbers, scale, unsafeBitCast(signedOffset, to: Vector.self))
        let bits = unsafeBitCast(number, to: Bits.self) &+ 1 << (shift &- 1)
        return lastBytes(bits &>> shift & 0x7F | bits &>> 24 & 0x80)
    }
}

/// The segment and 5 bits of mantissa. A code stands for the middle of the numbers that have it, which is never 0.
private enum UnsignedCode {
    /// The number of the largest code.
    static let largest: Float = 1.9765625  // 2 - 2^-6 - 2^-7
    private static let shift: UInt32 = 18

    @inline(always)
    static func numbers(_ codes: Codes, in unit: Unit) -> Vector {
        var bits = Bits.zero
        for lane in 0..<16 { bits[lane] = UInt32(codes[lane]) }
        let middle = codeOffset.bitPattern | 1 << (shift &- 1)
        return multiplyAdd(unsafeBitCast(bits &<< shift | middle, to: Vector.self), unit.factor, unit.offset)
    }

    /// `scale` takes numbers, which are not below 0, to ``largest`` at most.
    @inline(always)
    static func codes(of numbers: Vector, times scale: Vector) -> Codes {
        lastBytes(unsafeBitCast(multiplyAdd(numbers, scale, codeOffset), to: Bits.self) &>> shift)
    }
}

@inline(always)
private func lastBytes(_ bits: Bits) -> Codes {
    var codes = Codes.zero
    for lane in 0..<16 { codes[lane] = UInt8(truncatingIfNeeded: bits[lane]) }
    return codes
}

/// AdamW with moments of 8 bits: `adam` on moments that are made from their codes and the largest one of their block of 256
/// elements (Dettmers et al., arXiv 2110.02861), and become codes again afterwards.
///
/// Of the second moment the root is kept, which takes half the decades.
func adamw8bit(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ m: UnsafeMutablePointer<UInt8>,
    _ mLargest: UnsafeMutablePointer<Float>, _ root: UnsafeMutablePointer<UInt8>,
    _ rootLargest: UnsafeMutablePointer<Float>, _ options: UnsafePointer<shims_adam>, _ n: Int64
) {
    @inline(always)
    func fetch(_ element: Int) {
        shims_prefetch(parameter + element)
        shims_prefetch(gradient + element)
        shims_prefetch(m + element)
        shims_prefetch(root + element)
    }
    let groupSize = 4
    // Of memory in elements: one group may be worked on before what comes after it has arrived.
    let distance = 2 &* groupSize &* 256
    for vector in 0..<distance / 16 { fetch(16 &* vector) }
    let options = options.pointee
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let mFactor = (1 - options.weight1) * (1 / SignedCode.largest)
    let weight2 = Vector(repeating: options.weight2)
    let rootFactor = options.beta2.squareRoot() * (1 / UnsignedCode.largest)
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: -options.step_size)
    // Of a group of blocks, in full precision. What the largest numbers of a block take is hidden by the next block.
    let blockCount = (Int(n) &+ 255) / 256
    let zeros = zeroRegisters()
    // Four means and four squares.
    var moments = (zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros)
    withUnsafeMutableBytes(of: &moments) {
        let means = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Float.self)
        let squares = means + (groupSize &* 256)
        for group in 0..<(blockCount &+ groupSize &- 1) / groupSize {
            let blocks = group &* groupSize..<min(group &* groupSize &+ groupSize, blockCount)
            let origin = blocks.lowerBound &* 256
            for block in blocks {
                let first = block &* 256
                let end = min(first &+ 256, Int(n))
                let mUnit = Unit(mLargest[block] * mFactor)
                let rootUnit = Unit(rootLargest[block] * rootFactor)
                var (meanMost, squareMost) = (Vector.zero, Vector.zero)
                @inline(always)
                func accumulate(_ lanes: Lanes) {
                    let g = load(gradient, lanes) * scale
                    let mean = multiplyAdd(weight1, g, SignedCode.numbers(load(m, lanes), in: mUnit))
                    let before = UnsignedCode.numbers(load(root, lanes), in: rootUnit)
                    // The other way round, the square of the codes' numbers would be made in parts of a register.
                    let square = multiplyAdd(before, before, weight2 * g * g)
                    let place = Lanes(first: lanes.first &- origin)
                    store(mean, means, place)
                    store(square, squares, place)
                    meanMost = shims_larger_magnitude(meanMost, padded(mean, lanes))
                    squareMost = larger(squareMost, padded(square, lanes))
                }
                forEachLanes(from: first, to: end, accumulate)
                mLargest[block] = largest(meanMost)
                rootLargest[block] = largest(squareMost).squareRoot()
            }
            for block in blocks {
                let first = block &* 256
                let end = min(first &+ 256, Int(n))
                @inline(always)
                func update(_ lanes: Lanes, _ mean: Vector, _ root: Vector) {
                    let denominator = multiplyAdd(root, correction, options.eps)
                    let p = load(parameter, lanes) * options.decoupled_decay
                    store(multiplyAdd(size, mean / denominator, p), parameter, lanes)
                }
                let isBeyond = mLargest[block] > mMost || rootLargest[block] > rootMost
                if isBeyond {
                    // The update is that of the numbers as they are, but the block must not lose all of them to these.
                    @inline(always)
                    func limit(_ lanes: Lanes) {
                        let place = Lanes(first: lanes.first &- origin)
                        let (mean, square) = (load(means, place), load(squares, place))
                        update(lanes, mean, square.squareRoot())
                        store(smaller(larger(mean, Vector(repeating: -mMost)), Vector(repeating: mMost)), means, place)
                        store(smaller(square, Vector(repeating: rootMost * rootMost)), squares, place)
                    }
                    forEachLanes(from: first, to: end, limit)
                    mLargest[block] = min(mLargest[block], mMost)
                    rootLargest[block] = min(rootLargest[block], rootMost)
                }
                if mLargest[block] < mLeast { mLargest[block] = 0 }
                let mScale = Vector(repeating: SignedCode.largest * inverse(mLargest[block]))
                let rootScale = Vector(repeating: UnsignedCode.largest * inverse(rootLargest[block]))
                @inline(always)
                func finish(_ lanes: Lanes) {
                    let place = Lanes(first: lanes.first &- origin)
                    let (mean, newRoot) = (load(means, place), load(squares, place).squareRoot())
                    if !isBeyond { update(lanes, mean, newRoot) }
                    store(SignedCode.codes(of: mean, times: mScale), m, lanes)
                    store(UnsignedCode.codes(of: newRoot, times: rootScale), root, lanes)
                    // This reads little from memory: meanwhile a later group is fetched.
                    fetch(lanes.first &+ distance)
                }
                forEachLanes(from: first, to: end, finish)
            }
        }
    }
}

/// The range of the largest first moment of a block, below which it is 0: 1 over it is no denormal, which would count for 0,
/// and neither it nor the unit of its codes is beyond float32.
private let mLeast: Float = 0x1p-120
private let mMost: Float = 0x1p126

/// The most that the largest root of a block may be: its square is not beyond float32.
private let rootMost: Float = 0x1p63

/// 1 over a magnitude, or 0 for 0.
@inline(always)
private func inverse(_ magnitude: Float) -> Float { magnitude > 0 ? 1 / magnitude : 0 }
