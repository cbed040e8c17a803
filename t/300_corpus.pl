# The corpora of the responder's fuzz targets, replayed under ASan and UBSan.

use strict;
use warnings;
use IPC::Run ();
use Test::More;

my $build = 'fcgi/fuzz/build';
is(system('make', '--silent', '-C', 'fcgi/fuzz'), 0, 'the targets are built')
  or BAIL_OUT('no fuzz targets');

foreach my $corpus (glob 'fcgi/fuzz/corpus/*')
{
	my ($target) = $corpus =~ m{([^/]+)$};
	my @inputs = glob "$corpus/*";
	my $output = '';
	my $passed = IPC::Run::run([ "$build/$target", @inputs ], '<', \undef, '>&', \$output, IPC::Run::timeout(60));
	ok($passed, "$target: no input breaks a promise") or diag($output);
	is_deeply([ grep { -e } split /\n/, $output ], \@inputs, "$target: every input was tried");
}

done_testing();
