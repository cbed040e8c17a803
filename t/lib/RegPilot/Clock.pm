# Clocks that the test steps while its servers run:
#
#   use RegPilot::Clock;          # before the server is started
#   step_clock(-3600);            # the wall clock is from here on an hour back
#   step_monotonic_clock(50);     # and 50 seconds more have passed, for rate windows too
#
# The clocks are for servers; what else is started does not care.

package RegPilot::Clock;

use strict;
use warnings;
use Cwd qw(abs_path);
use Exporter qw(import);
use PostgreSQL::Test::Utils ();

our @EXPORT = qw(step_clock step_monotonic_clock);

my $clock = PostgreSQL::Test::Utils::tempdir_short() . '/clock';
PostgreSQL::Test::Utils::append_to_file($clock, pack 'q2', 0, 0);
$ENV{STEPPED_CLOCK} = $clock;
$ENV{LD_PRELOAD} = abs_path('t/build/steppedclock.so');

# Sets the wall clock that many seconds off, of all servers at once.
sub step_clock
{
	my ($seconds) = @_;
	return write_step(0, $seconds);
}

# The same of the clock that nobody can step: forward only, or all that waits is lost.
sub step_monotonic_clock
{
	my ($seconds) = @_;
	return write_step(1, $seconds);
}

sub write_step
{
	my ($which, $seconds) = @_;
	open my $file, '+<', $clock or die "$clock: $!";
	sysseek $file, 8 * $which, 0;
	syswrite $file, pack 'q', 1e6 * $seconds;
	return;
}

1;
