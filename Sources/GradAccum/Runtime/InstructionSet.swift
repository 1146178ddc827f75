import CShims
import Glibc
import Kernels
import KernelsAVX2
import KernelsAVX512
import KernelsAVX512BF16

/// The builds of the kernels, from the one that every x86-64 has to the widest.
public enum InstructionSet: Int32, CaseIterable, Comparable, Sendable {
    case baseline = 0
    case avx2 = 1
    case avx512 = 2
    /// With the dot product of bfloat16.
    case avx512BF16 = 3

    public static func < (a: InstructionSet, b: InstructionSet) -> Bool { a.rawValue < b.rawValue }

    public var name: StaticString {
        switch self {
        case .baseline: "baseline"
        case .avx2: "avx2"
        case .avx512: "avx512"
        case .avx512BF16: "avx512_bf16"
        }
    }

    /// The widest that this CPU and operating system have.
    public static var best: InstructionSet { InstructionSet(rawValue: shims_cpu_level()) ?? .baseline }

    /// ``best``, or what the environment variable `GRADACCUM_ISA` limits it to.
    static func chosen() throws(GAError) -> InstructionSet {
        guard let value = getenv("GRADACCUM_ISA"), value.pointee != 0 else { return best }
        let wanted = String(cString: value)
        guard let set = allCases.first(where: { "\($0.name)" == wanted }) else {
            throw GAError(
                .unsupported,
                "GRADACCUM_ISA is \"\(wanted)\": set it to baseline, avx2, avx512 or avx512_bf16, or unset it")
        }
        guard set <= best else {
            throw GAError(
                .unsupported, "GRADACCUM_ISA asks for \(wanted), but this CPU has \(best.name) at most: unset it")
        }
        return set
    }

    var kernels: shims_kernel_table {
        switch self {
        case .baseline: Kernels.makeKernelTable()
        case .avx2: KernelsAVX2.makeKernelTable()
        case .avx512: InstructionSet.addingByHalves(KernelsAVX512.makeKernelTable())
        case .avx512BF16: InstructionSet.addingByHalves(KernelsAVX512BF16.makeKernelTable())
        }
    }

    /// With the sum of gradients by registers of 256 bits: one FMA for each element as before, and so the same bits.
    ///
    /// It waits for memory alone, and has it a tenth sooner by two requests for each line than by one (on Zen 4).
    private static func addingByHalves(_ table: shims_kernel_table) -> shims_kernel_table {
        var table = table
        table.add_scaled = KernelsAVX2.makeKernelTable().add_scaled
        return table
    }
}
