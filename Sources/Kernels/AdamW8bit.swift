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

/// A number whose last bits are an integer below 2^23 added to it.
private let magic: Float = 0x1p23

/// Codes as numbers.
@inline(always)
private func numbers(_ codes: Codes) -> Vector {
    var bits = Bits.zero
    for lane in 0..<16 { bits[lane] = UInt32(codes[lane]) }
    return unsafeBitCast(bits | magic.bitPattern, to: Vector.self) - magic
}

/// The integers 0 ... 255 next to some numbers.
@inline(always)
private func codes(_ numbers: Vector) -> Codes {
    let bits = unsafeBitCast(numbers + magic, to: Bits.self)
    var codes = Codes.zero
    for lane in 0..<16 { codes[lane] = UInt8(truncatingIfNeeded: bits[lane]) }
    return codes
}

/// The dynamic map of 8-bit optimizers (Dettmers et al., arXiv 2110.02861) between a level and a magnitude in 0 ... 1.
///
/// Levels n, n + 1, ... 2n - 1 lie in the middle of n equal parts of 0.1 ... 1 times a power of ten, for 7 decades up to 1
/// with twice as many each; a level of 0 lies below them and one of 1 above. So within a decade the magnitude is a line
/// over the level, and the lines of higher decades are steeper: the magnitude is the largest of them. Conversely the
/// level next to a magnitude is the least of lines, of which those of the decades have corners that others cut off.
private struct DynamicMap {
    /// Of the magnitude over the level, per decade.
    var slopes = zeroRegisters()
    var offsets = zeroRegisters()
    /// Of the level over the magnitude, with 1/2 taken off, per decade and per corner at its start.
    var levelSlopes = zeroRegisters()
    var levelOffsets = zeroRegisters()
    var cornerSlopes = zeroRegisters()
    var cornerOffsets = zeroRegisters()
    /// Where 1 is nearer than the last level of a decade, and its level.
    let top: Float
    let topLevel: Float

    static let decades = 7

    /// `first`: the parts of the lowest decade.
    @inline(always)
    init(first: Double) {
        var (parts, scale) = (first, 1e-6)
        for decade in 0..<DynamicMap.decades {
            slopes[unchecked: decade] = Vector(repeating: Float(0.9 * scale / parts))
            offsets[unchecked: decade] = Vector(repeating: Float(scale * (0.45 / parts - 0.8)))
            // The level of a magnitude t parts above the decade's start is parts + t. Below that start, parts have a fifth
            // of the length, and the middle between two levels is at t = 0.2; below the lowest it is this.
            let middle = decade == 0 ? (0.225 - 0.05 * parts) / 0.9 : 0.2
            let (slope, start) = (parts / 0.9 / scale, parts / 9)
            levelSlopes[unchecked: decade] = Vector(repeating: Float(slope))
            levelOffsets[unchecked: decade] = Vector(repeating: Float(parts - start - 0.5))
            cornerSlopes[unchecked: decade] = Vector(repeating: Float(slope / (1 - middle)))
            cornerOffsets[unchecked: decade] = Vector(
                repeating: Float(parts - (start + middle) / (1 - middle) - 0.5))
            parts *= 2
            scale *= 10
        }
        topLevel = Float(parts)
        top = Float(1 - 0.45 / parts)
    }

    @inline(always)
    func magnitude(_ level: Vector) -> Vector {
        var magnitude = Vector.zero
        for decade in 0..<DynamicMap.decades {
            magnitude = larger(
                magnitude, multiplyAdd(level, slopes[unchecked: decade], offsets[unchecked: decade]))
        }
        return smaller(magnitude, Vector(repeating: 1))
    }

    @inline(always)
    func level(_ magnitude: Vector) -> Vector {
        var least = Vector(repeating: topLevel)
        for decade in 0..<DynamicMap.decades {
            least = smaller(
                least, multiplyAdd(magnitude, levelSlopes[unchecked: decade], levelOffsets[unchecked: decade]))
            least = smaller(
                least, multiplyAdd(magnitude, cornerSlopes[unchecked: decade], cornerOffsets[unchecked: decade]))
        }
        return choose((least + magic) - magic, topLevel, where: magnitude .>= top)
    }
}

/// AdamW with moments of 8 bits (Dettmers et al., arXiv 2110.02861): `adam` on moments that are made from their codes and
/// the largest magnitude of their block, and are rounded to the nearest codes afterwards.
///
/// The codes of the first moment are 127 plus or minus a level, and those of the second a level less 1.
func adamw8bit(
    _ parameter: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<Float>, _ m: UnsafeMutablePointer<UInt8>,
    _ mLargest: UnsafeMutablePointer<Float>, _ v: UnsafeMutablePointer<UInt8>, _ vLargest: UnsafeMutablePointer<Float>,
    _ options: UnsafePointer<shims_adam>, _ n: Int64
) {
    let options = options.pointee
    let signed = DynamicMap(first: 1)
    let unsigned = DynamicMap(first: 2)
    let scale = Vector(repeating: options.gradient_scale)
    let weight1 = Vector(repeating: options.weight1)
    let beta2 = Vector(repeating: options.beta2)
    let weight2 = Vector(repeating: options.weight2)
    let correction = Vector(repeating: options.inverse_sqrt_correction2)
    let size = Vector(repeating: -options.step_size)
    let most = Vector(repeating: .greatestFiniteMagnitude)
    var moments = (zeroRegisters(), zeroRegisters())
    withUnsafeMutableBytes(of: &moments) {
        // Of a block, in full precision.
        let means = $0.baseAddress.unsafelyUnwrapped.assumingMemoryBound(to: Float.self)
        let squares = means + 256
        for number in 0..<(Int(n) &+ 255) / 256 {
            let first = number &* 256
            let end = min(first &+ 256, Int(n))
            let mScale = mLargest[number]
            let vScale = vLargest[number]
            var (mMost, vMost) = (Vector.zero, Vector.zero)
            @inline(always)
            func update(_ lanes: Lanes) {
                let p = load(parameter, lanes)
                let g = load(gradient, lanes) * scale
                let level = numbers(load(m, lanes)) - 127
                let mean = copySign(signed.magnitude(magnitude(level)), level) * mScale
                let newMean = multiplyAdd(weight1, g - mean, mean)
                let square = unsigned.magnitude(numbers(load(v, lanes)) + 1) * vScale
                // A block must not lose all of its numbers to one that is infinite.
                let newSquare = smaller(most, multiplyAdd(weight2 * g, g, square * beta2))
                let denominator = multiplyAdd(newSquare.squareRoot(), correction, options.eps)
                store(multiplyAdd(size, newMean / denominator, p * options.decoupled_decay), parameter, lanes)
                let place = Lanes(first: lanes.first &- first)
                store(newMean, means, place)
                store(newSquare, squares, place)
                mMost = larger(mMost, padded(magnitude(newMean), lanes))
                vMost = larger(vMost, padded(newSquare, lanes))
            }
            forEachLanes(from: first, to: end, update)
            mLargest[number] = largest(mMost)
            vLargest[number] = largest(vMost)
            let mInverse = inverse(mLargest[number])
            let vInverse = inverse(vLargest[number])
            @inline(always)
            func roundMean(_ lanes: Lanes) {
                let mean = load(means, Lanes(first: lanes.first &- first)) * mInverse
                let level = copySign(signed.level(magnitude(mean)), mean)
                // There is a code for 1 and none for -1.
                store(codes(larger(level, Vector(repeating: -127)) + 127), m, lanes)
            }
            forEachLanes(from: first, to: end, roundMean)
            @inline(always)
            func roundSquare(_ lanes: Lanes) {
                let square = load(squares, Lanes(first: lanes.first &- first)) * vInverse
                store(codes(unsigned.level(square) - 1), v, lanes)
            }
            forEachLanes(from: first, to: end, roundSquare)
        }
    }
}

/// 1 over a magnitude, or 0 for 0.
@inline(always)
private func inverse(_ magnitude: Float) -> Float { magnitude > 0 ? 1 / magnitude : 0 }

/// The magnitude with the sign of another number.
@inline(always)
private func copySign(_ magnitude: Vector, _ sign: Vector) -> Vector {
    unsafeBitCast(
        unsafeBitCast(magnitude, to: Bits.self) | unsafeBitCast(sign, to: Bits.self) & 0x8000_0000, to: Vector.self)
}
