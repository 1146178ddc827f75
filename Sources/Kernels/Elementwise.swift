import CShims

/// `a op b`.
@inline(always)
private func value(_ op: shims_binary, _ a: Vector, _ b: Vector) -> Vector {
    switch op.rawValue {
    case SHIMS_ADD.rawValue: a + b
    case SHIMS_SUBTRACT.rawValue: a - b
    case SHIMS_MULTIPLY.rawValue: a * b
    default: a / b
    }
}

/// `dy * d(a op b)/da`, or `/db` if `side` is 1.
///
/// The derivative of a quotient by its divisor is `-(a / b) / b`, which overflows later than `-a / (b * b)`.
@inline(always)
private func gradient(_ op: shims_binary, _ side: Int32, _ dy: Vector, _ a: Vector, _ b: Vector) -> Vector {
    switch op.rawValue {
    case SHIMS_ADD.rawValue: dy
    case SHIMS_SUBTRACT.rawValue: side == 0 ? dy : -dy
    case SHIMS_MULTIPLY.rawValue: dy * (side == 0 ? b : a)
    default: side == 0 ? dy / b : -(dy * (a / b / b))
    }
}

/// An operand of `n` elements, or one number for all of them if its step is 0.
private struct Operand {
    let elements: UnsafePointer<Float>
    let step: Int64
    let number: Vector

    @inline(always)
    init(_ elements: UnsafePointer<Float>, _ step: Int64, _ n: Int64) {
        self.elements = elements
        self.step = step
        number = Vector(repeating: n > 0 ? elements[0] : 0)
    }

    @inline(always)
    func callAsFunction(_ lanes: Lanes) -> Vector {
        step == 0 ? number : load(elements, lanes)
    }
}

/// `out[i] = a[i * aStep] op b[i * bStep]`.
func binary(
    _ op: shims_binary, _ out: UnsafeMutablePointer<Float>, _ a: UnsafePointer<Float>, _ aStep: Int64,
    _ b: UnsafePointer<Float>, _ bStep: Int64, _ n: Int64
) {
    @inline(always)
    func combine(_ op: shims_binary, _ aStep: Int64, _ bStep: Int64) {
        let (a, b) = (Operand(a, aStep, n), Operand(b, bStep, n))
        @inline(always)
        func body(_ lanes: Lanes) { store(value(op, a(lanes), b(lanes)), out, lanes) }
        forEachLanes(to: Int(n), body)
    }
    // A loop of its own for every operation, and one more for two lists, the common case.
    @inline(always)
    func combine(_ op: shims_binary) {
        if aStep == 1 && bStep == 1 { combine(op, 1, 1) } else { combine(op, aStep, bStep) }
    }
    switch op.rawValue {
    case SHIMS_ADD.rawValue: combine(SHIMS_ADD)
    case SHIMS_SUBTRACT.rawValue: combine(SHIMS_SUBTRACT)
    case SHIMS_MULTIPLY.rawValue: combine(SHIMS_MULTIPLY)
    default: combine(SHIMS_DIVIDE)
    }
}

/// `out[i] (+)= dy[i] * d(a op b)/da`, or `/db` if `side` is 1.
func binaryGradient(
    _ op: shims_binary, _ side: Int32, _ out: UnsafeMutablePointer<Float>, _ dy: UnsafePointer<Float>,
    _ a: UnsafePointer<Float>, _ aStep: Int64, _ b: UnsafePointer<Float>, _ bStep: Int64, _ n: Int64,
    _ accumulate: Int32
) {
    let (a, b) = (Operand(a, aStep, n), Operand(b, bStep, n))
    @inline(always)
    func combine(_ op: shims_binary, _ side: Int32) {
        @inline(always)
        func body(_ lanes: Lanes) {
            let term = gradient(op, side, load(dy, lanes), a(lanes), b(lanes))
            emit(term, out, lanes, accumulate: accumulate != 0)
        }
        forEachLanes(to: Int(n), body)
    }
    switch (op.rawValue, side) {
    case (SHIMS_ADD.rawValue, _), (SHIMS_SUBTRACT.rawValue, 0): combine(SHIMS_ADD, 0)
    case (SHIMS_SUBTRACT.rawValue, _): combine(SHIMS_SUBTRACT, 1)
    case (SHIMS_MULTIPLY.rawValue, 0): combine(SHIMS_MULTIPLY, 0)
    case (SHIMS_MULTIPLY.rawValue, _): combine(SHIMS_MULTIPLY, 1)
    case (_, 0): combine(SHIMS_DIVIDE, 0)
    default: combine(SHIMS_DIVIDE, 1)
    }
}

/// `out[i] (+)= scale * x[i]`, with x in any storage format.
func addScaled(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafeRawPointer, _ format: shims_format, _ scale: Float,
    _ n: Int64, _ accumulate: Int32
) {
    let accumulate = accumulate != 0
    let factor = Vector(repeating: scale)
    let single = x.assumingMemoryBound(to: Float.self)
    let half = x.assumingMemoryBound(to: UInt16.self)
    // A product with 1 would still flush denormals.
    if scale == 1 && !accumulate {
        if format.rawValue == SHIMS_F32.rawValue {
            out.update(from: single, count: Int(n))
        } else {
            toF32(out, half, format, n)
        }
        return
    }
    @inline(always)
    func addF32(_ lanes: Lanes) {
        emitProduct(factor, load(single, lanes), out, lanes, accumulate: accumulate)
    }
    @inline(always)
    func addBF16(_ lanes: Lanes) {
        emitProduct(factor, fromBF16(load(half, lanes)), out, lanes, accumulate: accumulate)
    }
    @inline(always)
    func addF16(_ lanes: Lanes) {
        emitProduct(factor, fromF16(load(half, lanes)), out, lanes, accumulate: accumulate)
    }
    switch format.rawValue {
    case SHIMS_F32.rawValue: forEachLanes(to: Int(n), addF32)
    case SHIMS_BF16.rawValue: forEachLanes(to: Int(n), addBF16)
    default: forEachLanes(to: Int(n), addF16)
    }
}

/// `out[i] = scale * x[i]`, with x in any storage format, stored past the caches.
///
/// A store into a line that is in no cache reads it first, for nothing where all of it is written.
func streamScaled(
    _ out: UnsafeMutablePointer<Float>, _ x: UnsafeRawPointer, _ format: shims_format, _ scale: Float, _ n: Int64
) {
    let n = Int(n)
    let size = format.rawValue == SHIMS_F32.rawValue ? 4 : 2
    let past = Int(bitPattern: out) & 63
    guard past & 3 == 0 else { return addScaled(out, x, format, scale, Int64(n), 0) }
    let toLine = past == 0 ? 0 : (64 &- past) / 4
    let start = toLine < n ? toLine : n
    let end = start &+ (n &- start) & ~15
    addScaled(out, x, format, scale, Int64(start), 0)
    let factor = Vector(repeating: scale)
    let single = x.assumingMemoryBound(to: Float.self)
    let half = x.assumingMemoryBound(to: UInt16.self)
    // A product with 1 would flush denormals.
    let isProduct = scale != 1
    @inline(always)
    func stream(_ value: Vector, _ lanes: Lanes) {
        shims_stream(out + lanes.first, isProduct ? factor * value : value)
    }
    @inline(always)
    func streamF32(_ lanes: Lanes) { stream(load(single, lanes), lanes) }
    @inline(always)
    func streamBF16(_ lanes: Lanes) { stream(fromBF16(load(half, lanes)), lanes) }
    @inline(always)
    func streamF16(_ lanes: Lanes) { stream(fromF16(load(half, lanes)), lanes) }
    switch format.rawValue {
    case SHIMS_F32.rawValue: forEachLanes(from: start, to: end, streamF32)
    case SHIMS_BF16.rawValue: forEachLanes(from: start, to: end, streamBF16)
    default: forEachLanes(from: start, to: end, streamF16)
    }
    shims_stream_end()
    addScaled(out + end, x + end &* size, format, scale, Int64(n &- end), 0)
}

/// `out[i] = value`.
func fill(_ out: UnsafeMutablePointer<Float>, _ value: Float, _ n: Int64) {
    let number = Vector(repeating: value)
    @inline(always)
    func body(_ lanes: Lanes) { store(number, out, lanes) }
    forEachLanes(to: Int(n), body)
}

/// `out[i] (+)= scale * (a[i] - b[i])`.
func scaledDifference(
    _ out: UnsafeMutablePointer<Float>, _ a: UnsafePointer<Float>, _ b: UnsafePointer<Float>, _ scale: Float,
    _ n: Int64, _ accumulate: Int32
) {
    let factor = Vector(repeating: scale)
    @inline(always)
    func body(_ lanes: Lanes) {
        emitProduct(factor, load(a, lanes) - load(b, lanes), out, lanes, accumulate: accumulate != 0)
    }
    forEachLanes(to: Int(n), body)
}
