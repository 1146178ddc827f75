import CGradAccum
import CShims
import GradAccum

/// A rule of the caller, behind ``ga_custom_create``.
struct ForeignRule: UpdateRule {
    static var name: StaticString { "custom" }
    static let mostSlots: Int64 = 64

    var learningRate: Double
    var weightDecay: Double
    let slotCount: Int
    let isElementwise: Bool
    let function: ga_update_fn
    let user: ForeignUser

    func slots(ofParameter index: Int, shape: [Int]) -> [Slot] {
        (0..<slotCount).map { Slot("slot\($0)", shape: shape) }
    }

    func validate() throws(GAError) {
        try requireLearningRate()
        try require(weightDecay, "weight_decay", in: 0...Double.infinity)
    }

    func apply(_ update: Update) throws(GAError) {
        guard !isElementwise else {
            return try update.forEachPiece { (index, range) throws(GAError) in
                try run(update, update.parameters[index], range)
            }
        }
        for parameter in update.parameters where parameter.count > 0 { try run(update, parameter, 0..<parameter.count) }
    }

    private func run(_ update: Update, _ parameter: Update.Parameter, _ range: Range<Int>) throws(GAError) {
        let start = range.lowerBound
        var context = ga_update(
            struct_size: UInt32(MemoryLayout<ga_update>.size), reserved: 0, update: Int64(update.number),
            parameter: Int64(parameter.index), start: Int64(start), learning_rate: learningRate,
            gradient_scale: Double(update.gradientScale), weight_decay: weightDecay)
        // No array, as this runs in tiles: see ``Update/forEachPiece(_:)``.
        let status = withUnsafeTemporaryAllocation(
            of: UnsafeMutablePointer<Float>?.self, capacity: slotCount
        ) { slots in
            for slot in 0..<slotCount { slots.initializeElement(at: slot, to: parameter.floats(slot) + start) }
            return function(
                parameter.values + start, parameter.gradient + start, slotCount == 0 ? nil : slots.baseAddress,
                Int64(range.count), &context, user.pointer)
        }
        if let kind = try errorKind(status, of: "custom: update") {
            throw GAError(kind, "custom: update returned \(kind): \(String(cString: shims_last_error()))")
        }
    }
}
