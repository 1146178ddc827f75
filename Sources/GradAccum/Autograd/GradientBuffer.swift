import CShims

/// The sum of a leaf's gradients from one place in the graph: contiguous float32 in the shape of the leaf.
///
/// It can hold its first two gradients of a half format as they came, in the memory of the sum, which is as large as both: to
/// keep two bytes is a fraction of the traffic of adding four to four. Until ``settle()``, or a further addition, its elements
/// are then no sum. The bits of the sum are the same.
final class GradientBuffer {
    let tensor: Tensor
    /// Nothing has been added yet: the elements mean zero, whatever they hold.
    private(set) var isEmpty = true
    private var held = HeldGradients()

    init(shape: [Int], _ lifetime: Arena.Lifetime) throws(GAError) {
        tensor = try Tensor(uninitialized: shape, for: "gradient", lifetime: lifetime)
    }

    /// On memory that is there, and that means zero if `isEmpty`.
    init(_ tensor: Tensor, isEmpty: Bool) {
        self.tensor = tensor
        self.isEmpty = isEmpty
    }

    func empty() {
        isEmpty = true
        held = HeldGradients()
    }

    /// Says that the elements are the sum.
    func fill() {
        isEmpty = false
        held = HeldGradients()
    }

    /// Adds the elements at `gradient` to those from `start` on, a multiple of ``Pieces/grain``, or stores them where nothing
    /// was added. After all elements of the gradient comes ``didAdd(_:)``.
    func add(_ gradient: UnsafeRawPointer, _ addition: Addition, from start: Int, count: Int) {
        let (kernels, sum, n) = (Runtime.kernels, tensor.floats + start, Int64(count))
        let (format, factor) = (addition.dtype.format, addition.factor)
        let half = gradient.assumingMemoryBound(to: UInt16.self)
        let takesHeld = held.count > 0 && held.dtype == addition.dtype
        if canHold(addition) {
            kernels.hold_half(sum, held.count, half, format, factor, n, addition.pastCaches ? 1 : 0)
        } else if takesHeld {
            held.add(to: sum, half, factor, n)
        } else if isEmpty && addition.pastCaches {
            kernels.stream_scaled(sum, gradient, format, factor, n)
        } else {
            if held.count > 0 { held.add(to: sum, nil, 0, n) }
            kernels.add_scaled(sum, gradient, format, factor, n, isEmpty ? 0 : 1)
        }
    }

    func didAdd(_ addition: Addition) {
        if canHold(addition) {
            held.append(addition)
        } else {
            held = HeldGradients()
        }
        isEmpty = false
    }

    private func canHold(_ addition: Addition) -> Bool {
        addition.canWait && addition.dtype.byteCount == 2
            && (isEmpty || (held.count == 1 && held.dtype == addition.dtype))
    }

    /// Makes the elements the sum, if they are not.
    func settle() throws(GAError) {
        guard held.count > 0 else { return }
        try Pieces([tensor.elementCount]).forEach { _, start, count in
            held.add(to: tensor.floats + start, nil, 0, Int64(count))
        }
        held = HeldGradients()
    }
}

/// How a whole gradient is added to a sum.
struct Addition {
    let dtype: DType
    let factor: Float
    /// No cache holds the sum until the next addition, so what is stored need not go through them.
    let pastCaches: Bool
    /// Another addition is to come before the sum is read.
    let canWait: Bool
}

/// Gradients in a half format that a sum has in its memory.
private struct HeldGradients {
    var dtype = DType.bfloat16
    var count: Int32 = 0
    private var factors: (Float, Float) = (1, 1)

    mutating func append(_ addition: Addition) {
        if count == 0 { factors.0 = addition.factor } else { factors.1 = addition.factor }
        dtype = addition.dtype
        count += 1
    }

    func add(to sum: UnsafeMutablePointer<Float>, _ gradient: UnsafePointer<UInt16>?, _ factor: Float, _ n: Int64) {
        Runtime.kernels.add_held(sum, count, factors.0, factors.1, gradient, dtype.format, factor, n)
    }
}
