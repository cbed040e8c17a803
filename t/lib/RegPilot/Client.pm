# Clients in other languages, run by a script in t/clients:
#
#   run_client($site, $config, 'node', 't/clients/fetch.mjs', 'calls');
#
# The script is given the configuration, in JSON, as its last argument. What it
# checks it says in lines of JSON, which become tests here: {"check":"the text",
# "ok":true}, with "got" and "wanted" for those that fail. It fails as well if it
# does not come to its end.

package RegPilot::Client;

use strict;
use warnings;
use Exporter qw(import);
use JSON::PP ();
use PostgreSQL::Test::Utils qw(slurp_file);
use RegPilot::Test;
use Test::More;

our @EXPORT = qw(run_client start_client client_said finish_client);

my $json = JSON::PP->new->utf8->canonical;
my $clients = 0;

sub start_client
{
	my ($site, $config, @command) = @_;
	my $output = "$site->{dir}/client_" . ++$clients;

	# what RegPilot::Clock preloads is for servers
	my $pid = $site->spawn($output, { LD_PRELOAD => '' }, @command, $json->encode($config));
	return { pid => $pid, output => $output };
}

# The lines that it has written so far.
sub client_said
{
	my ($client) = @_;
	return () unless -e $client->{output};
	return map { eval { $json->decode($_) } // () } grep { /^\{/ } split /\n/, slurp_file($client->{output});
}

sub finish_client
{
	my ($client) = @_;
	my $status = RegPilot::Test::reap($client->{pid}, 0, 120);
	my @said = client_said($client);
	foreach my $line (grep { defined $_->{check} } @said)
	{
		ok($line->{ok}, $line->{check}) or diag("got: $line->{got}\nwanted: $line->{wanted}");
	}
	is($status, 0, 'the client came to its end') or diag(grep { !/^\{/ } split /^/, slurp_file($client->{output}));
	return @said;
}

sub run_client { return finish_client(start_client(@_)) }

1;
