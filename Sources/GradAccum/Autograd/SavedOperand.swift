/// The elements of an operand for a backward function: kept, or made again from what the operation behind them keeps.
///
/// Making again goes one operation deep, and has the same bits. It is for results that nothing else keeps: while they are in
/// memory anyway, they are read there.
struct SavedOperand {
    /// Results below this are kept: they cost less memory than time.
    private static let fewestBytes = 1 << 16

    /// Nil if the elements can be made again.
    private let kept: Tensor?
    private let producer: Node?
    private weak var storage: Storage?
    private let sequence: UInt64
    private let dtype: DType
    private let layout: Layout
    private let offset: Int

    /// `packed`: the input's elements, contiguous, which the operation has read.
    init(_ packed: Tensor, of input: Tensor) {
        let producer = input.producer
        let canBeMadeAgain = packed === input && Recording.isOn && SavedOperand.canMakeAgain(input, producer)
        kept = canBeMadeAgain ? nil : packed
        self.producer = canBeMadeAgain ? producer : nil
        storage = canBeMadeAgain ? packed.storage : nil
        sequence = canBeMadeAgain ? Node.nextNumber() : 0
        dtype = packed.dtype
        layout = packed.layout
        offset = packed.offset
    }

    /// Whether a result is a whole one of an operation that can make it again, and still what was made then.
    private static func canMakeAgain(_ input: Tensor, _ producer: Node?) -> Bool {
        guard let producer, producer.canRemake else { return false }
        let storage = input.storage
        return input.elementCount == producer.layout.elementCount
            && input.elementCount * input.dtype.byteCount >= fewestBytes
            && storage.lastWrite <= producer.sequence && !storage.isExposed
    }

    /// The tensors that must not be written to until ``elements()``: those behind a result that can be made again are the
    /// business of its own operation, which is in every graph that this one is in.
    var operands: [Tensor] { kept.map { [$0] } ?? [] }

    /// The contiguous elements. Errors: `outOfMemory`; `state` if the operation behind them is used up.
    func elements() throws(GAError) -> Tensor {
        if let kept { return kept }
        if let storage, storage.lastWrite <= sequence { return Tensor(storage, dtype, layout, offset: offset) }
        guard let producer else { throw GAError(.internal, "backward: an operand was neither kept nor made again") }
        return try producer.remake()
    }
}
